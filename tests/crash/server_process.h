// A server of the test's own, as a process that can be killed and started again on the same data
// and port: mneme-crash-server, which is mneme-server but for the points at which it can be told to
// end by itself.

#ifndef MNEME_TESTS_CRASH_SERVER_PROCESS_H_
#define MNEME_TESTS_CRASH_SERVER_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace mneme {

// Thread-compatible. The destructor kills the process.
class ServerProcess {
 public:
  // `folder` gets the data directory, the backups and the server's log; `model` is a bundle.
  ServerProcess(std::string folder, std::string model);
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  // `crash_at`: "N:POINT", see tests/crash/server/crash_hook.cc; empty: nowhere.
  void Start(const std::string& crash_at = "");
  // SIGKILL: no destructor of the server runs.
  void KillNine();
  // SIGTERM, then waits; the exit status, or -1 when a signal ended it.
  int Stop();
  // Waits until it has ended by itself; its exit status, or -1 when it still runs or a signal ended
  // it.
  int AwaitEnd(absl::Duration patience);
  // False when the process ended by itself.
  bool Alive();
  // Runs the program to its end with these flags alone; its exit status.
  int RunToEnd(const std::vector<std::string>& flags);

  const std::string& address() const { return address_; }
  std::string data_dir() const { return folder_ + "/data"; }
  std::string backup_dir() const { return folder_ + "/backups"; }
  std::string log_path() const { return folder_ + "/server.log"; }

 private:
  pid_t Spawn(const std::vector<std::string>& flags, const std::string& crash_at);
  // Takes note of how it ended.
  int Ended(int wait_status);

  const std::string folder_;
  const std::string model_;
  std::string address_;
  pid_t pid_ = -1;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CRASH_SERVER_PROCESS_H_
