#include "tests/client/cutting_proxy.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace mneme {
namespace {

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

bool WriteAll(int fd, const char* data, ssize_t bytes) {
  while (bytes > 0) {
    const ssize_t n = send(fd, data, static_cast<size_t>(bytes), MSG_NOSIGNAL);
    if (n <= 0) return false;
    data += n;
    bytes -= n;
  }
  return true;
}

}  // namespace

CuttingProxy::CuttingProxy(int port, std::vector<int64_t> cuts)
    : server_port_(port), cuts_(cuts.begin(), cuts.end()) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof address;
  EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(listen(listener_, 16), 0);
  EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { Accept(); });
}

CuttingProxy::~CuttingProxy() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  acceptor_.join();
  std::vector<std::thread> relays;
  {
    absl::MutexLock lock(&mutex_);
    relays.swap(relays_);
  }
  for (std::thread& relay : relays) relay.join();
  close(listener_);
}

std::string CuttingProxy::address() const { return absl::StrCat("127.0.0.1:", port_); }

int CuttingProxy::cut() {
  absl::MutexLock lock(&mutex_);
  return cut_;
}

void CuttingProxy::Accept() {
  while (true) {
    pollfd ready = {listener_, POLLIN, 0};
    const bool waiting = poll(&ready, 1, /*timeout ms=*/20) > 0;
    absl::MutexLock lock(&mutex_);
    if (closing_) return;
    if (!waiting) continue;
    const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    int64_t cut_after = -1;
    if (!cuts_.empty()) {
      cut_after = cuts_.front();
      cuts_.pop_front();
    }
    relays_.emplace_back([this, client, cut_after] { Relay(client, cut_after); });
  }
}

void CuttingProxy::Relay(int client, int64_t cut_after) {
  const int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = Loopback(server_port_);
  bool open = connect(server, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  int64_t sent = 0;
  std::vector<char> buffer(16 << 10);
  while (open) {
    pollfd ready[2] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
    poll(ready, 2, /*timeout ms=*/20);
    {
      absl::MutexLock lock(&mutex_);
      if (closing_) break;
    }
    for (int side = 0; side < 2 && open; ++side) {
      if (ready[side].revents == 0) continue;
      const ssize_t n = recv(ready[side].fd, buffer.data(), buffer.size(), 0);
      open = n > 0 && WriteAll(ready[1 - side].fd, buffer.data(), n);
      if (side == 0) sent += n;
    }
    if (open && cut_after >= 0 && sent >= cut_after) {
      absl::MutexLock lock(&mutex_);
      ++cut_;
      open = false;
    }
  }
  close(client);
  close(server);
}

}  // namespace mneme
