// host:port addresses that the server listens on.

#ifndef MNEME_SERVER_LISTEN_ADDRESS_H_
#define MNEME_SERVER_LISTEN_ADDRESS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

struct ListenAddress {
  std::string host;  // without brackets
  int port = 0;

  bool is_loopback() const;
  // host:port, an IPv6 host in brackets.
  std::string ToString() const;
};

// INVALID_ARGUMENT unless `text` is host:port or [ipv6]:port with a port of 0 to 65535.
absl::StatusOr<ListenAddress> ParseListenAddress(absl::string_view text);

// Finds out whether the address can be bound now, without SO_REUSEPORT, and lets go of it again.
// UNAVAILABLE names the address and why not (in use, no permission, not an address of this
// machine).
absl::Status ProbeListenAddress(const ListenAddress& address);

// Connects to the address and hangs up at once, to wake whoever waits for a connection. Failures do
// not matter.
void KnockOn(const ListenAddress& address);

}  // namespace mneme

#endif  // MNEME_SERVER_LISTEN_ADDRESS_H_
