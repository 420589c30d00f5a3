#include "server/listen_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace mneme {

bool ListenAddress::is_loopback() const {
  return host == "localhost" || host == "::1" || absl::StartsWith(host, "127.");
}

std::string ListenAddress::ToString() const {
  const bool is_v6 = absl::StrContains(host, ':');
  return absl::StrCat(is_v6 ? "[" : "", host, is_v6 ? "]:" : ":", port);
}

absl::StatusOr<ListenAddress> ParseListenAddress(absl::string_view text) {
  const absl::Status bad =
      absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is not host:port"));
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return bad;
  absl::string_view host = text.substr(0, colon);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  } else if (absl::StrContains(host, ':')) {
    return bad;
  }
  ListenAddress address;
  address.host = std::string(host);
  if (host.empty() || !absl::SimpleAtoi(text.substr(colon + 1), &address.port)) return bad;
  if (address.port < 0 || address.port > 65535) return bad;
  return address;
}

namespace {

// A TCP socket and the address it is for, as resolved. Move-only in effect: lives in one scope.
struct ResolvedSocket {
  explicit ResolvedSocket(const ListenAddress& address) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    const int code =
        getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
    if (code != 0) {
      error = gai_strerror(code);
      return;
    }
    fd = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, found->ai_protocol);
    if (fd < 0) error = std::strerror(errno);
  }
  ~ResolvedSocket() {
    if (fd >= 0) close(fd);
    if (found != nullptr) freeaddrinfo(found);
  }
  ResolvedSocket(const ResolvedSocket&) = delete;
  ResolvedSocket& operator=(const ResolvedSocket&) = delete;

  addrinfo* found = nullptr;
  int fd = -1;
  std::string error;  // empty: all is well
};

}  // namespace

absl::Status ProbeListenAddress(const ListenAddress& address) {
  ResolvedSocket socket(address);
  // Connections of an earlier server that linger are no obstacle; a listener is.
  const int on = 1;
  if (socket.error.empty() &&
      (setsockopt(socket.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
       bind(socket.fd, socket.found->ai_addr, socket.found->ai_addrlen) != 0 ||
       listen(socket.fd, 1) != 0)) {
    socket.error = std::strerror(errno);
  }
  if (socket.error.empty()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", address.ToString(), ": ", socket.error));
}

void KnockOn(const ListenAddress& address) {
  ResolvedSocket socket(address);
  if (!socket.error.empty()) return;
  [[maybe_unused]] const int result =
      connect(socket.fd, socket.found->ai_addr, socket.found->ai_addrlen);
}

}  // namespace mneme
