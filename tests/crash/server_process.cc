#include "tests/crash/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>
#include <utility>

#include "absl/time/clock.h"
#include "common/check.h"

namespace mneme {
namespace {

// A port that was free a moment ago, below those that the system gives to whoever asks for any: so
// that nobody gets it while the server that listens there is dead.
int FreePort() {
  std::random_device random;
  for (;;) {
    const int port = 10'000 + static_cast<int>(random() % 20'000);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MNEME_CHECK(fd >= 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const bool is_free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    close(fd);
    if (is_free) return port;
  }
}

}  // namespace

ServerProcess::ServerProcess(std::string folder, std::string model)
    : folder_(std::move(folder)),
      model_(std::move(model)),
      address_("127.0.0.1:" + std::to_string(FreePort())) {}

ServerProcess::~ServerProcess() {
  if (pid_ > 0) KillNine();
}

pid_t ServerProcess::Spawn(const std::vector<std::string>& flags, const std::string& crash_at) {
  // Beside this program: a copy of both runs on its own.
  const std::string program =
      std::filesystem::read_symlink("/proc/self/exe").parent_path() / "mneme-crash-server";
  // All of it before the fork: other threads of this process may hold any lock.
  std::vector<const char*> arguments = {program.c_str()};
  for (const std::string& flag : flags) arguments.push_back(flag.c_str());
  arguments.push_back(nullptr);
  const std::string crash = "CRASH_AT=" + crash_at;
  std::vector<const char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, "CRASH_", 6) != 0) environment.push_back(*entry);
  }
  if (!crash_at.empty()) environment.push_back(crash.c_str());
  environment.push_back(nullptr);
  const std::string log = log_path();
  const pid_t pid = fork();
  MNEME_CHECK(pid >= 0);
  if (pid > 0) return pid;
  const int fd = open(log.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0644);
  dup2(fd, STDOUT_FILENO);
  dup2(fd, STDERR_FILENO);
  // One that is to stop before it listens to signals stops when it does.
  sigset_t stop_signal;
  sigemptyset(&stop_signal);
  sigaddset(&stop_signal, SIGTERM);
  sigprocmask(SIG_BLOCK, &stop_signal, nullptr);
  execve(program.c_str(), const_cast<char**>(arguments.data()),
         const_cast<char**>(environment.data()));
  _exit(127);
}

void ServerProcess::Start(const std::string& crash_at) {
  MNEME_CHECK(pid_ < 0);
  pid_ = Spawn({"--data-dir", data_dir(), "--model", model_, "--listen", address_, "--http", "off",
                "--set", "store.backup_dir=" + backup_dir(), "--set",
                "store.scrub_bytes_per_second=1000000", "--set", "store.scrub_interval_seconds=1"},
               crash_at);
}

int ServerProcess::RunToEnd(const std::vector<std::string>& flags) {
  int status = 0;
  waitpid(Spawn(flags, ""), &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void ServerProcess::KillNine() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

int ServerProcess::Ended(int wait_status) {
  pid_ = -1;
  return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1;
}

int ServerProcess::Stop() {
  kill(pid_, SIGTERM);
  int status = 0;
  waitpid(pid_, &status, 0);
  return Ended(status);
}

int ServerProcess::AwaitEnd(absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  int status = 0;
  do {
    if (waitpid(pid_, &status, WNOHANG) == pid_) return Ended(status);
    absl::SleepFor(absl::Milliseconds(2));
  } while (absl::Now() < deadline);
  return -1;
}

bool ServerProcess::Alive() {
  if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = -1;
  return pid_ > 0;
}

}  // namespace mneme
