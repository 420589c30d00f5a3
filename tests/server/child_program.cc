#include "tests/server/child_program.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace mneme {

ChildProgram::ChildProgram(const std::string& name, const std::vector<std::string>& arguments,
                           const std::vector<std::string>& environment) {
  std::signal(SIGPIPE, SIG_IGN);
  std::string program = absl::StrCat(MNEME_BIN_DIR "/", name);
  std::vector<std::string> args = arguments;
  std::vector<char*> argv = {program.data()};
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  std::vector<std::string> variables = environment;
  for (const char* kept : {"PATH", "CHECK_RUN_MARK", "ASAN_OPTIONS", "UBSAN_OPTIONS",
                           "TSAN_OPTIONS", "LSAN_OPTIONS"}) {
    if (const char* value = std::getenv(kept)) variables.push_back(absl::StrCat(kept, "=", value));
  }
  std::vector<char*> envp;
  for (std::string& variable : variables) envp.push_back(variable.data());
  envp.push_back(nullptr);

  int input[2], output[2], errors[2];
  MNEME_CHECK(pipe2(input, O_CLOEXEC) == 0 && pipe2(output, O_CLOEXEC) == 0 &&
              pipe2(errors, O_CLOEXEC) == 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, errors[1], STDERR_FILENO);
  MNEME_CHECK(posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(), envp.data()) ==
              0);
  posix_spawn_file_actions_destroy(&actions);
  input_ = input[1];
  close(input[0]);
  close(output[1]);
  close(errors[1]);
  readers_.emplace_back([this, fd = output[0]] { Read(fd, &output_); });
  readers_.emplace_back([this, fd = errors[0]] { Read(fd, &errors_); });
}

ChildProgram::~ChildProgram() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    Wait();
  }
}

void ChildProgram::Read(int fd, std::string* to) {
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) {
    absl::MutexLock lock(&mutex_);
    to->append(buffer, n);
  }
  close(fd);
  absl::MutexLock lock(&mutex_);
  --open_streams_;
}

bool ChildProgram::WriteInput(const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = write(input_, text.data() + done, text.size() - done);
    if (n < 0) return false;
    done += n;
  }
  return true;
}

void ChildProgram::CloseInput() {
  if (input_ >= 0) close(input_);
  input_ = -1;
}

void ChildProgram::Signal(int number) { MNEME_CHECK(kill(pid_, number) == 0); }

bool ChildProgram::AwaitError(const std::string& text) {
  const auto settled = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return errors_.find(text) != std::string::npos || open_streams_ == 0;
  };
  absl::MutexLock lock(&mutex_, absl::Condition(&settled));
  return errors_.find(text) != std::string::npos;
}

std::string ChildProgram::LogValue(const std::string& key) {
  absl::MutexLock lock(&mutex_);
  const std::string wanted = absl::StrCat(" ", key, "=");
  const size_t at = errors_.find(wanted);
  if (at == std::string::npos) return "";
  const size_t begin = at + wanted.size();
  return errors_.substr(begin, errors_.find_first_of(" \n", begin) - begin);
}

ChildProgram::Result ChildProgram::Wait() {
  CloseInput();
  int status = 0;
  MNEME_CHECK(waitpid(pid_, &status, 0) == pid_);
  pid_ = -1;
  for (std::thread& reader : readers_) reader.join();
  absl::MutexLock lock(&mutex_);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), output_, errors_};
}

ChildProgram::Result RunServer(const std::vector<std::string>& arguments,
                               const std::vector<std::string>& environment) {
  return ChildProgram("mneme-server", arguments, environment).Wait();
}

}  // namespace mneme
