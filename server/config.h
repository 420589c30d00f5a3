// Configuration of mneme-server: defaults < YAML file < MNEME_SECTION_KEY environment < flags.
//
// One table (ConfigKeys) describes every key: section, name, unit, help, default. Parsing,
// --print-config, --help, the names of environment variables and docs/configuration.md all derive
// from it. The keys of a section are in config_SECTION_section.cc, the file's form in
// config_yaml.cc, the command line in config_command_line.cc.

#ifndef MNEME_SERVER_CONFIG_H_
#define MNEME_SERVER_CONFIG_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/engine.h"
#include "server/server_options.h"

namespace mneme {

struct ServerConfig {
  std::string log_level = "info";
  ServerOptions server;

  // Folder of the bundle; empty: mneme-small, looked for beside the program (FindDefaultModel).
  std::string model_path;
  std::string device = "auto";
  std::string precision = "bf16";
  // Worker threads of the CPU backend; 0: one a core.
  int threads = 0;

  std::string data_dir = "./mneme-data";
  int64_t block_cache_bytes = int64_t{256} << 20;
  int background_threads = 2;
  int64_t reserve_bytes = int64_t{64} << 20;
  int64_t host_page_bytes_max = int64_t{1} << 30;
  int64_t device_page_bytes_max = int64_t{4} << 30;
  int64_t device_landmark_bytes_max = int64_t{32} << 30;
  int64_t past_tail_bytes_max = int64_t{256} << 20;
  int64_t past_views_max = 64;
  int64_t snapshots_per_memory_max = 1000;
  int fork_depth_max = 32;
  // "stream" or "refuse".
  std::string device_landmark_overflow = "stream";

  // By tenant, then by key: what holds for it instead of quota.tenant_*.
  std::map<std::string, std::map<std::string, std::string>> tenant_quotas;

  // The scrubber runs in a server unless it is told not to.
  EngineOptions engine = {.admission = {.watermarks = {.free_low_bytes = int64_t{1} << 30,
                                                       .free_high_bytes = int64_t{256} << 20}},
                          .scrub_bytes_per_second = int64_t{4} << 20};

  // engine.admission with everything else that says something of it.
  AdmissionOptions Admission() const;
};

// One configuration key.
struct ConfigKey {
  enum class Type { kText, kList, kMap, kInteger, kBytes, kSeconds };
  std::string section;
  std::string name;
  Type type;
  // What a value may be, in words: "1 .. 1024", "cpu, cuda or auto", "host:port".
  std::string allowed;
  std::string help;
  // INVALID_ARGUMENT says what is wrong with the value; the key is named by the caller.
  std::function<absl::Status(ServerConfig&, absl::string_view)> set;
  std::function<std::string(const ServerConfig&)> get;

  std::string full_name() const;    // section.name
  std::string environment() const;  // MNEME_SECTION_NAME
  // "bytes", "seconds" or "".
  absl::string_view unit() const;
};

// All keys, by section. Lives for the whole process.
absl::Span<const ConfigKey> ConfigKeys();
// Null when there is none of that name (section.name).
const ConfigKey* FindKey(absl::string_view full_name);
// `source` says in errors where the value comes from.
absl::Status SetKey(const ConfigKey& key, absl::string_view value, absl::string_view source,
                    ServerConfig* config);
// What no key alone can tell. INVALID_ARGUMENT names the keys.
absl::Status CheckConfig(const ServerConfig& config);

inline constexpr absl::string_view kConfigEnvironmentPrefix = "MNEME_";

// What the command line asks for.
struct CommandLine {
  enum class Action { kServe, kHelp, kVersion, kPrintConfig, kVerify, kRestore };
  Action action = Action::kServe;
  // Of kRestore: DIR, or DIR:ID.
  std::string restore_from;
  // Of kRestore: RestoreOptions::allow_derived_damage.
  bool restore_damaged = false;
  ServerConfig config;
};

// Reads the command line, the file it names (--config) and the environment. `args` without the
// program's name; `environment` as NAME=value. INVALID_ARGUMENT (a usage error) names the flag, key
// or value and where it comes from; NOT_FOUND a file that cannot be read.
absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const std::string> args,
                                             absl::Span<const std::string> environment);

// Sets keys from YAML text; `source` names it in errors.
absl::Status ApplyYaml(absl::string_view yaml, absl::string_view source, ServerConfig* config);

// YAML that ApplyYaml takes back.
std::string ToYaml(const ServerConfig& config);

// Text of --help: every flag and every key.
std::string HelpText();

}  // namespace mneme

#endif  // MNEME_SERVER_CONFIG_H_
