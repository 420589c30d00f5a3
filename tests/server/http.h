// One HTTP request on a loopback address, for tests.

#ifndef MNEME_TESTS_SERVER_HTTP_H_
#define MNEME_TESTS_SERVER_HTTP_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/listen_address.h"

namespace mneme {

// The whole HTTP response to one request on a loopback address.
inline std::string Http(const std::string& address, const std::string& request_line) {
  const ListenAddress to = *ParseListenAddress(address);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in socket_address = {};
  socket_address.sin_family = AF_INET;
  socket_address.sin_port = htons(static_cast<uint16_t>(to.port));
  inet_pton(AF_INET, to.host.c_str(), &socket_address.sin_addr);
  std::string response;
  if (connect(fd, reinterpret_cast<sockaddr*>(&socket_address), sizeof(socket_address)) == 0) {
    const std::string request =
        absl::StrCat(request_line, " HTTP/1.1\r\nHost: ", address, "\r\nConnection: close\r\n\r\n");
    EXPECT_EQ(send(fd, request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    char buffer[1 << 14];
    for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) response.append(buffer, n);
  }
  close(fd);
  return response;
}

}  // namespace mneme

#endif  // MNEME_TESTS_SERVER_HTTP_H_
