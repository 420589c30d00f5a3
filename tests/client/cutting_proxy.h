// CuttingProxy: a TCP relay in front of a server that cuts connections after chosen numbers of
// bytes, as a bad network does.

#ifndef MNEME_TESTS_CLIENT_CUTTING_PROXY_H_
#define MNEME_TESTS_CLIENT_CUTTING_PROXY_H_

#include <cstdint>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace mneme {

// Thread-safe.
class CuttingProxy {
 public:
  // Relays a free port of loopback to `port`. Connection i is cut once the client has sent cuts[i]
  // bytes through it; those beyond the list live on.
  CuttingProxy(int port, std::vector<int64_t> cuts);
  ~CuttingProxy();
  CuttingProxy(const CuttingProxy&) = delete;
  CuttingProxy& operator=(const CuttingProxy&) = delete;

  // host:port of the relay.
  std::string address() const;
  // Connections that were cut.
  int cut();

 private:
  void Accept();
  void Relay(int client, int64_t cut_after);

  const int server_port_;
  int listener_ = -1;
  int port_ = 0;
  absl::Mutex mutex_;
  std::deque<int64_t> cuts_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  int cut_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::thread> relays_ ABSL_GUARDED_BY(mutex_);
  std::thread acceptor_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CLIENT_CUTTING_PROXY_H_
