// mneme-server: reads the configuration, opens the stack, serves until SIGTERM or SIGINT, drains.

#include <malloc.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "common/supervisor.h"
#include "memory_store/backup_directory.h"
#include "memory_store/store_checker.h"
#include "mneme_version.h"
#include "server/config.h"
#include "server/http_server.h"
#include "server/process_metrics.h"
#include "server/readiness.h"
#include "server/server.h"
#include "server/stack.h"

extern char** environ;

namespace mneme {
namespace {

constexpr int kExitError = 1;
constexpr int kExitUsage = 2;
constexpr absl::Duration kEngineDrainMin = absl::Seconds(2);

// What is freed goes back to the system. Left to itself, glibc keeps ever larger blocks in its
// heaps (its threshold for mapping them rises with each that is freed), where what is small and
// stays holds them: RocksDB's memtables, in blocks of 1 MiB, above all; and it makes eight heaps a
// core. After 1.7M tokens of bench/lasting 321 MiB were resident so, of a limit of 301; with this
// 275 MiB after 1.8M.
void LimitHeap() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 256 << 10);
  mallopt(M_ARENA_MAX, static_cast<int>(2 * std::max(1u, std::thread::hardware_concurrency())));
#endif
}

// SIGTERM and SIGINT, taken by AwaitStop alone: blocked here, and so in all threads begun later.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signals;
}

// Waits for the first stop signal. A second one ends the process at once.
const char* AwaitStop(const sigset_t& signals) {
  int signal_number = 0;
  while (sigwait(&signals, &signal_number) != 0) {
  }
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  return signal_number == SIGTERM ? "SIGTERM" : "SIGINT";
}

absl::Status WritePortFile(const std::string& path, const std::string& grpc_address,
                           const std::string& http_address) {
  if (path.empty()) return absl::OkStatus();
  // Renamed into place, so that a reader never sees half of it.
  const std::string temporary = path + ".tmp";
  {
    std::ofstream file(temporary);
    file << "grpc=" << grpc_address << "\nhttp=" << http_address << "\n";
    if (!file.flush()) return absl::UnavailableError(absl::StrCat("cannot write ", temporary));
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

// Everything after the configuration is known; returns after the drain.
absl::Status Serve(const ServerConfig& config) {
  const sigset_t signals = BlockStopSignals();
  Clock& clock = RealClock();
  Metrics metrics;
  Supervisor supervisor(metrics, clock, config.engine.thread_stall_max);
  Readiness readiness(supervisor);

  // A file of an earlier run must not send anybody to the wrong place.
  if (!config.server.port_file.empty()) std::remove(config.server.port_file.c_str());

  std::unique_ptr<HttpServer> http;
  std::string http_address;
  if (config.server.http != "off") {
    ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(config.server.http));
    ASSIGN_OR_RETURN(
        http, HttpServer::Start(address, metrics, [&readiness] { return readiness.status(); }));
    http_address = http->address().ToString();
  }
  // Found out now, not after a long recovery.
  ASSIGN_OR_RETURN(const ListenAddress grpc_listen, ParseListenAddress(config.server.listen));
  RETURN_IF_ERROR(ProbeListenAddress(grpc_listen));

  ASSIGN_OR_RETURN(const std::unique_ptr<Stack> stack, Stack::Open(config, supervisor));
  const ServerInfo info = stack->info();
  AddProcessMetrics(metrics, info.backend);
  LogInfo("server", "starting",
          {{"version", kMnemeVersion},
           {"commit", kMnemeCommit},
           {"backend", info.backend},
           {"device", info.device},
           {"model", absl::StrFormat("%016x", info.bundle_fingerprint)},
           {"data_dir", config.data_dir}});
  Server::Parts parts{.engine = stack->engine(),
                      .readiness = readiness,
                      .supervisor = supervisor,
                      .limits = {.memories_per_read_max = config.engine.memories_per_read_max,
                                 .retrieve_k_max = config.engine.retrieve_k_max,
                                 .generate_tokens_max = config.engine.generate_tokens_max},
                      .info = info,
                      .http_address = http_address};
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(config.server, std::move(parts));
  RETURN_IF_ERROR(server.status());
  const std::string grpc_address = (*server)->address().ToString();
  absl::Status status = WritePortFile(config.server.port_file, grpc_address, http_address);
  if (status.ok()) {
    LogInfo("server", "listening",
            {{"grpc", grpc_address}, {"http", config.server.http == "off" ? "off" : http_address}});
    if (!grpc_listen.is_loopback()) {
      LogWarning("server", "listening beyond loopback without authentication or encryption",
                 {{"grpc", grpc_address}});
    }
    readiness.Attach(stack->engine());
    const char* signal_name = AwaitStop(signals);
    const absl::Time deadline = absl::Now() + config.server.drain_timeout;
    LogInfo("server", "draining",
            {{"signal", signal_name},
             {"seconds", absl::StrCat(absl::ToDoubleSeconds(config.server.drain_timeout))}});
    (*server)->Drain(deadline);
    // However long the calls took, the engine gets time to finish what it holds.
    status = stack->engine().Drain(std::max(deadline, absl::Now() + kEngineDrainMin));
  }
  readiness.Detach();
  server->reset();
  return status;
}

// --verify-only: what was read, what is damaged; DATA_LOSS when anything is.
absl::Status VerifyDirectory(const ServerConfig& config) {
  Metrics metrics;
  ASSIGN_OR_RETURN(const std::unique_ptr<Stack> stack,
                   Stack::OpenToRead(config, metrics, RealClock()));
  ASSIGN_OR_RETURN(const StoreCheckReport report, StoreChecker(stack->memory_store(), {}).Run());
  for (const StoreFinding& finding : report.findings) {
    const std::string where =
        finding.document_id.empty()
            ? finding.file
            : absl::StrCat(
                  ResourceName{finding.tenant, finding.memory_id, finding.document_id}.ToString(),
                  " bytes ", finding.byte_begin, " to ", finding.byte_end);
    std::printf("damaged %s %s: %s\n", StoreFindingKindName(finding.kind), where.c_str(),
                finding.what.c_str());
  }
  std::printf("%s documents, %s bytes read, %s damaged\n", absl::StrCat(report.documents).c_str(),
              absl::StrCat(report.bytes_read()).c_str(),
              absl::StrCat(report.found_count()).c_str());
  if (report.found_count() == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(config.data_dir, " is damaged"));
}

// --restore-from DIR[:ID], --restore-damaged.
absl::Status RestoreBackup(const CommandLine& command) {
  const std::string& from = command.restore_from;
  const std::string& data_dir = command.config.data_dir;
  std::string directory = from;
  int64_t id = 0;
  if (const size_t colon = from.rfind(':');
      colon != std::string::npos && absl::SimpleAtoi(from.substr(colon + 1), &id)) {
    directory.resize(colon);
    if (id <= 0) {
      return absl::InvalidArgumentError(absl::StrCat("--restore-from ", from, ": no backup id"));
    }
  }
  RETURN_IF_ERROR(CheckApart(directory, data_dir));
  ASSIGN_OR_RETURN(const RestoredBackup restored,
                   BackupDirectory::Restore(
                       directory, {.id = id, .allow_derived_damage = command.restore_damaged},
                       data_dir, [](const BackupProgress&) { return absl::OkStatus(); }));
  const BackupInfo& info = restored.info;
  std::printf("restored backup %s of %s%s into %s: %s documents, %s bytes of text\n",
              absl::StrCat(info.id).c_str(), directory.c_str(),
              info.store.empty() ? "" : absl::StrCat(" (made of ", info.store, ")").c_str(),
              data_dir.c_str(), absl::StrCat(info.documents).c_str(),
              absl::StrCat(info.durable_bytes).c_str());
  for (const BackupDamage& damage : restored.damage) {
    std::printf("damaged, to be derived again: %s\n", damage.what.c_str());
  }
  if (!restored.damage.empty()) {
    std::printf("start the server and call mneme repair: it derives again what is damaged\n");
  }
  return absl::OkStatus();
}

int Main(const std::vector<std::string>& args, const std::vector<std::string>& environment) {
  const auto fail = [](const absl::Status& status, int exit_status) {
    std::fprintf(stderr, "mneme-server: %s\n", std::string(status.message()).c_str());
    return exit_status;
  };
  absl::StatusOr<CommandLine> command = ParseCommandLine(args, environment);
  if (!command.ok()) return fail(command.status(), kExitUsage);
  LimitHeap();
  switch (command->action) {
    case CommandLine::Action::kHelp:
      std::fputs(HelpText().c_str(), stdout);
      return 0;
    case CommandLine::Action::kVersion:
      std::printf("mneme-server %s commit %s backends %s\n", kMnemeVersion, kMnemeCommit,
                  absl::StrJoin(BackendNames(), ",").c_str());
      return 0;
    case CommandLine::Action::kPrintConfig:
      std::fputs(ToYaml(command->config).c_str(), stdout);
      return 0;
    case CommandLine::Action::kServe:
    case CommandLine::Action::kVerify:
    case CommandLine::Action::kRestore:
      break;
  }
  LogLevel level = LogLevel::kInfo;
  ParseLogLevel(command->config.log_level, &level);
  SetLogLevel(level);
  // Distributions build abseil with its search for cycles of locks, which costs a global lock at
  // each.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  if (command->action == CommandLine::Action::kVerify) {
    const absl::Status verified = VerifyDirectory(command->config);
    return verified.ok() ? 0 : fail(verified, kExitError);
  }
  if (command->action == CommandLine::Action::kRestore) {
    const absl::Status restored = RestoreBackup(*command);
    return restored.ok() ? 0 : fail(restored, kExitError);
  }
  const absl::Status status = Serve(command->config);
  if (!status.ok()) return fail(status, kExitError);
  LogInfo("server", "stopped");
  return 0;
}

}  // namespace
}  // namespace mneme

int main(int argc, char** argv) {
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  return mneme::Main(std::vector<std::string>(argv + 1, argv + argc), environment);
}
