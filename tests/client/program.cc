#include "tests/client/program.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

extern char** environ;

namespace mneme {

Program::Program(const std::vector<std::string>& arguments, const std::string& address,
                 bool terminal) {
  const std::string path = std::string(MNEME_BIN_DIR) + "/mneme";
  std::vector<char*> argv = {const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  std::string variable = "MNEME_ADDRESS=" + address;
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (std::string(*entry).rfind("MNEME_", 0) != 0) environment.push_back(*entry);
  }
  environment.push_back(variable.data());
  environment.push_back(nullptr);

  int in[2], out[2], err[2] = {-1, -1};
  EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
  if (terminal) {
    const struct winsize size = {.ws_row = 24, .ws_col = 120};
    EXPECT_EQ(openpty(&out[0], &out[1], nullptr, nullptr, &size), 0);
    fcntl(out[0], F_SETFD, FD_CLOEXEC);
    fcntl(out[1], F_SETFD, FD_CLOEXEC);
  } else {
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(err, O_CLOEXEC), 0);
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  posix_spawn_file_actions_adddup2(&actions, terminal ? out[1] : err[1], 2);
  EXPECT_EQ(posix_spawn(&pid_, path.c_str(), &actions, nullptr, argv.data(), environment.data()), 0)
      << path;
  posix_spawn_file_actions_destroy(&actions);
  close(in[0]);
  close(out[1]);
  input_ = in[1];
  readers_.emplace_back([this, fd = out[0]] { Read(fd, &result_.output); });
  if (!terminal) {
    close(err[1]);
    readers_.emplace_back([this, fd = err[0]] { Read(fd, &result_.errors); });
  }
}

Program::~Program() {
  if (pid_ > 0) {
    Signal(SIGKILL);
    Wait();
  }
}

void Program::Read(int fd, std::string* text) {
  char buffer[4096];
  while (true) {
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    // A pseudoterminal whose other end has closed says EIO.
    if (n <= 0) break;
    absl::MutexLock lock(&mutex_);
    text->append(buffer, static_cast<size_t>(n));
  }
  close(fd);
  absl::MutexLock lock(&mutex_);
  output_ended_ |= text == &result_.output;
}

bool Program::AwaitOutput(const std::string& text) {
  const auto settled = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return result_.output.find(text) != std::string::npos || output_ended_;
  };
  absl::MutexLock lock(&mutex_, absl::Condition(&settled));
  return result_.output.find(text) != std::string::npos;
}

void Program::WriteInput(const std::string& text) {
  // The program may have gone: then there is nobody to read.
  signal(SIGPIPE, SIG_IGN);
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t n = write(input_, text.data() + written, text.size() - written);
    if (n <= 0) break;
    written += static_cast<size_t>(n);
  }
}

void Program::CloseInput() {
  if (input_ >= 0) close(input_);
  input_ = -1;
}

void Program::Signal(int number) { kill(pid_, number); }

Program::Result Program::Wait() {
  CloseInput();
  for (std::thread& reader : readers_) reader.join();
  readers_.clear();
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  absl::MutexLock lock(&mutex_);
  result_.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result_;
}

Program::Result RunProgram(const std::vector<std::string>& arguments, const std::string& address,
                           const std::string& input, bool terminal) {
  Program program(arguments, address, terminal);
  program.WriteInput(input);
  return program.Wait();
}

}  // namespace mneme
