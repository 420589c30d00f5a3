// A mneme-server of the test's own, as a process that can be killed and started again on the same
// data and port.

#ifndef MNEME_TESTS_CRASH_SERVER_PROCESS_H_
#define MNEME_TESTS_CRASH_SERVER_PROCESS_H_

#include <sys/types.h>

#include <string>

namespace mneme {

// Thread-compatible. The destructor kills the process.
class ServerProcess {
 public:
  // `folder` gets the data directory and the server's log.
  explicit ServerProcess(std::string folder);
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  void Start();
  // SIGKILL: no destructor of the server runs.
  void KillNine();
  // SIGTERM, then waits; the exit status, or -1 when a signal ended it.
  int Stop();
  // False when the process ended by itself.
  bool Alive();

  const std::string& address() const { return address_; }
  std::string log_path() const { return folder_ + "/server.log"; }

 private:
  const std::string folder_;
  std::string address_;
  pid_t pid_ = -1;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CRASH_SERVER_PROCESS_H_
