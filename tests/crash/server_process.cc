#include "tests/crash/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "common/check.h"

namespace mneme {
namespace {

// A port that was free a moment ago.
int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  MNEME_CHECK(fd >= 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  MNEME_CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  socklen_t size = sizeof(address);
  MNEME_CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  close(fd);
  return ntohs(address.sin_port);
}

}  // namespace

ServerProcess::ServerProcess(std::string folder)
    : folder_(std::move(folder)), address_("127.0.0.1:" + std::to_string(FreePort())) {}

ServerProcess::~ServerProcess() {
  if (pid_ > 0) KillNine();
}

void ServerProcess::Start() {
  MNEME_CHECK(pid_ < 0);
  const std::string program = std::string(MNEME_BIN_DIR) + "/mneme-server";
  const std::string model = std::string(MNEME_SOURCE_DIR) + "/models/mneme-small";
  const std::string data = folder_ + "/data";
  pid_ = fork();
  MNEME_CHECK(pid_ >= 0);
  if (pid_ > 0) return;
  const int log = open(log_path().c_str(), O_CREAT | O_WRONLY | O_APPEND, 0644);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  execl(program.c_str(), program.c_str(), "--data-dir", data.c_str(), "--model", model.c_str(),
        "--listen", address_.c_str(), "--http", "off", static_cast<char*>(nullptr));
  _exit(127);
}

void ServerProcess::KillNine() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

int ServerProcess::Stop() {
  kill(pid_, SIGTERM);
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool ServerProcess::Alive() {
  if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = -1;
  return pid_ > 0;
}

}  // namespace mneme
