#include "server/config.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<CommandLine> Parse(std::vector<std::string> args,
                                  std::vector<std::string> environment = {}) {
  return ParseCommandLine(args, environment);
}

// The usage error of a command line.
std::string ErrorOf(std::vector<std::string> args, std::vector<std::string> environment = {}) {
  const auto command = Parse(std::move(args), std::move(environment));
  return command.ok() ? "no error" : std::string(command.status().message());
}

std::string WriteFile(const TemporaryFolder& folder, const std::string& contents) {
  const std::string path = folder.path() + "/config.yaml";
  std::ofstream(path) << contents;
  return path;
}

TEST(ConfigTest, BackupsBelongApartFromTheData) {
  const TemporaryFolder folder;
  const std::string data = folder.path() + "/data";
  const auto error_with = [&](const std::string& backups) {
    return ErrorOf({"--data-dir", data, "--set", "store.backup_dir=" + backups});
  };
  EXPECT_EQ(error_with(folder.path() + "/backups"), "no error");
  EXPECT_EQ(error_with(folder.path() + "/data2"), "no error");
  for (const std::string& backups : {data, data + "/", data + "/backups", data + "/../data/x",
                                     folder.path(), std::string("/")}) {
    const std::string error = error_with(backups);
    EXPECT_THAT(error, HasSubstr("store.backup_dir: the backup directory " + backups));
    EXPECT_THAT(error, HasSubstr("the data directory " + data));
  }
  // By another name.
  std::filesystem::create_directory(data);
  std::filesystem::create_directory_symlink(data, folder.path() + "/link");
  EXPECT_THAT(error_with(folder.path() + "/link"), HasSubstr(" is the data directory "));
  EXPECT_THAT(error_with(folder.path() + "/link/b"), HasSubstr(" lies in the data directory "));
}

TEST(ConfigTest, DefaultsAreTheDocumentedAddresses) {
  const auto command = Parse({});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->action, CommandLine::Action::kServe);
  EXPECT_EQ(command->config.server.listen, "127.0.0.1:7420");
  EXPECT_EQ(command->config.server.http, "127.0.0.1:7421");
  EXPECT_EQ(command->config.data_dir, "./mneme-data");
  EXPECT_EQ(command->config.server.message_bytes_max, 4 << 20);
}

TEST(ConfigTest, EachLayerOverridesTheOneBelow) {
  TemporaryFolder folder;
  const std::string file = WriteFile(folder,
                                     "server: {reader_threads: 3, ingest_threads: 3}\n"
                                     "store:\n  data_dir: /from/file\n");
  const auto command =
      Parse({"--config", file, "--set", "server.ingest_threads=5"},
            {"MNEME_SERVER_INGEST_THREADS=4", "MNEME_STORE_DATA_DIR=/from/environment"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->config.server.reader_threads, 3);
  EXPECT_EQ(command->config.data_dir, "/from/environment");
  EXPECT_EQ(command->config.server.ingest_threads, 5);
}

TEST(ConfigTest, FlagsComeInBothForms) {
  const auto command = Parse({"--data-dir=/a=b", "--listen", "[::1]:1", "--device", "cpu"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->config.data_dir, "/a=b");
  EXPECT_EQ(command->config.server.listen, "[::1]:1");
  EXPECT_EQ(command->config.device, "cpu");
}

TEST(ConfigTest, TheLastFlagCounts) {
  const auto command = Parse({"--set", "store.data_dir=/x", "--data-dir", "/y"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->config.data_dir, "/y");
}

TEST(ConfigTest, UnknownThingsAreNamed) {
  TemporaryFolder folder;
  EXPECT_THAT(ErrorOf({"--dat-dir", "x"}), HasSubstr("unknown flag --dat-dir"));
  EXPECT_THAT(ErrorOf({"serve"}), HasSubstr("unexpected argument serve"));
  EXPECT_THAT(ErrorOf({"--set", "server.port=1"}), HasSubstr("\"server.port\""));
  EXPECT_THAT(ErrorOf({"--set", "server.port"}), HasSubstr("server.port"));
  EXPECT_THAT(ErrorOf({}, {"MNEME_SERVER_PORT=1"}), HasSubstr("MNEME_SERVER_PORT"));
  EXPECT_THAT(ErrorOf({"--config", WriteFile(folder, "server:\n  port: 1\n")}),
              HasSubstr("config.yaml:2: unknown key \"server.port\""));
  EXPECT_THAT(ErrorOf({"--config", WriteFile(folder, "sever:\n  listen: x\n")}),
              HasSubstr("unknown section \"sever\""));
  EXPECT_THAT(ErrorOf({"--config", "/no/such/file"}), HasSubstr("/no/such/file"));
  EXPECT_THAT(ErrorOf({"--config"}), HasSubstr("--config needs a value"));
}

TEST(ConfigTest, BadValuesAreNamedWithKeyAndSource) {
  TemporaryFolder folder;
  EXPECT_THAT(ErrorOf({"--listen", "7420"}), HasSubstr("--listen: server.listen: \"7420\""));
  EXPECT_THAT(ErrorOf({"--listen", "127.0.0.1:70000"}), HasSubstr("127.0.0.1:70000"));
  EXPECT_THAT(ErrorOf({"--device", "gpu"}), HasSubstr("\"gpu\" is not allowed: cpu, cuda, auto"));
  EXPECT_THAT(ErrorOf({"--log-level", "loud"}), HasSubstr("loud"));
  EXPECT_THAT(ErrorOf({}, {"MNEME_SERVER_READER_THREADS=0"}),
              HasSubstr("environment MNEME_SERVER_READER_THREADS: server.reader_threads: \"0\""));
  EXPECT_THAT(ErrorOf({"--set", "server.drain_seconds=nan"}), HasSubstr("nan"));
  EXPECT_THAT(ErrorOf({"--set", "server.drain_seconds=1e12"}),
              HasSubstr("\"1e12\" is not allowed: 0 .. 315360000"));
  EXPECT_THAT(ErrorOf({"--set", "store.reserve_bytes=9EiB"}), HasSubstr("9EiB"));
  EXPECT_THAT(ErrorOf({"--set", "store.reserve_bytes=99999999TiB"}), HasSubstr("99999999TiB"));
  EXPECT_THAT(ErrorOf({"--set", "server.tenants=a,-b"}), HasSubstr("a,-b"));
  EXPECT_THAT(ErrorOf({"--config", WriteFile(folder, "model:\n  device: [cpu]\n")}),
              HasSubstr("config.yaml:2: model.device"));
}

TEST(ConfigTest, BrokenYamlIsAnError) {
  ServerConfig config;
  for (const char* yaml : {"server: [", "server: 5", "- a", "server: {listen: {a: b}}", "a: &x *x",
                           "server:\n  listen: 127.0.0.1:1\n  listen: 127.0.0.1:2\n"}) {
    const absl::Status status = ApplyYaml(yaml, "file", &config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << yaml;
    EXPECT_THAT(std::string(status.message()), HasSubstr("file:")) << yaml;
  }
}

TEST(ConfigTest, EmptyYamlChangesNothing) {
  for (const char* yaml : {"", "# nothing\n", "server:\n", "{}"}) {
    ServerConfig config;
    EXPECT_TRUE(ApplyYaml(yaml, "file", &config).ok()) << yaml;
    EXPECT_EQ(ToYaml(config), ToYaml(ServerConfig())) << yaml;
  }
}

TEST(ConfigTest, AnEmptyFileIsLikeOneOfComments) {
  TemporaryFolder folder;
  for (const char* contents : {"", "# nothing\n", "---\n"}) {
    const auto command = Parse({"--config", WriteFile(folder, contents)});
    ASSERT_TRUE(command.ok()) << command.status();
    EXPECT_EQ(ToYaml(command->config), ToYaml(ServerConfig()));
  }
  EXPECT_THAT(ErrorOf({"--config", folder.path()}), HasSubstr("cannot read"));
}

TEST(ConfigTest, WhatWouldBeIgnoredIsAnErrorThatNamesIt) {
  TemporaryFolder folder;
  const std::pair<std::string, std::string> wrong[] = {
      {"server:\n  reader_threads: 3\n---\nserver:\n  reader_threads: 4\n",
       "config.yaml:4: a second YAML document"},
      {"server:\n  reader_threads: 3\nserver:\n  ingest_threads: 4\n",
       "config.yaml:3: section \"server\" stands there twice"},
      {"server:\nserver:\n  ingest_threads: 4\n", "section \"server\" stands there twice"},
      {"store:\n  data_dir: \"a\xff\"\n", "config.yaml: not valid UTF-8 at byte 21"},
      {"store:\n  data_dir: \"a\\0b\"\n", "store.data_dir: the value has a NUL character"},
      {"server:\n  tenants: [a, b, a]\n", "server.tenants: \"a,b,a\" is not allowed"},
  };
  for (const auto& [yaml, part] : wrong) {
    EXPECT_THAT(ErrorOf({"--config", WriteFile(folder, yaml)}), HasSubstr(part)) << yaml;
  }
  EXPECT_THAT(ErrorOf({"--set", "server.tenants=a,a"}), HasSubstr("a stands there twice"));
}

TEST(ConfigTest, BytesTakeSuffixes) {
  const auto command =
      Parse({"--set", "store.reserve_bytes=3MiB", "--set", "store.host_page_bytes_max=2 GiB"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->config.reserve_bytes, 3 << 20);
  EXPECT_EQ(command->config.host_page_bytes_max, int64_t{2} << 30);
}

TEST(ConfigTest, QuotasOfATenantStandInsteadOfThoseOfEach) {
  TemporaryFolder folder;
  const std::string file = WriteFile(folder,
                                     "server: {tenants: [a, b.c]}\n"
                                     "quota:\n"
                                     "  text_bytes_max: 1TiB\n"
                                     "  tenants:\n"
                                     "    b.c: {text_bytes_max: 3GiB, readers_max: 0}\n"
                                     "  tenant_readers_max: 7\n");
  const auto command = Parse({"--config", file});
  ASSERT_TRUE(command.ok()) << command.status();
  const QuotaOptions quotas = command->config.Admission().quotas;
  EXPECT_EQ(quotas.all.text_bytes_max, int64_t{1} << 40);
  EXPECT_EQ(quotas.tenants.at("a").readers_max, 7);
  EXPECT_EQ(quotas.tenants.at("a").text_bytes_max, 0);
  EXPECT_EQ(quotas.tenants.at("b.c").text_bytes_max, int64_t{3} << 30);
  EXPECT_EQ(quotas.tenants.at("b.c").readers_max, 0);
  // The same in one text, and what is printed is taken back.
  const auto flag = Parse({"--config", file, "--set", "quota.tenants=a.documents_max=5"});
  ASSERT_TRUE(flag.ok()) << flag.status();
  EXPECT_EQ(flag->config.Admission().quotas.tenants.at("a").documents_max, 5);
  for (const auto& one : {command, flag}) {
    ServerConfig again;
    ASSERT_TRUE(ApplyYaml(ToYaml(one->config), "printed", &again).ok());
    EXPECT_EQ(again.tenant_quotas, one->config.tenant_quotas);
  }
}

TEST(ConfigTest, WrongQuotasAndWatermarksAreNamed) {
  TemporaryFolder folder;
  const std::pair<std::string, std::string> wrong[] = {
      {"quota.tenants=default.reader_max=1", "unknown key \"default.reader_max=1\""},
      {"quota.tenants=nobody.readers_max=1", "\"nobody\" is none of server.tenants"},
      {"quota.tenants=default.readers_max=many", "\"many\" is not allowed: readers_max is 0"},
      {"quota.tenants=default.readers_max=1,default.readers_max=2", "stands there twice"},
      {"quota.tenants=readers_max", "\"readers_max\" is not allowed"},
      {"quota.text_bytes_max=-1", "\"-1\" is not allowed"},
      {"quota.ingest_burst_bytes=0", "\"0\" is not allowed"},
      {"store.watermark_low_percent=101", "\"101\" is not allowed: 1 .. 100"},
      {"store.watermark_low_percent=95", "watermarks 0.95 and 0.95"},
      {"store.free_low_bytes=1MiB", "1048576"},
      {"store.device_landmark_overflow=crash", "\"crash\" is not allowed: stream, refuse"},
  };
  for (const auto& [assignment, part] : wrong) {
    EXPECT_THAT(ErrorOf({"--set", assignment}), HasSubstr(part)) << assignment;
  }
  EXPECT_THAT(ErrorOf({"--config", WriteFile(folder, "quota:\n  tenants: [a]\n")}),
              HasSubstr("config.yaml:2: quota.tenants"));
  EXPECT_THAT(
      ErrorOf({"--config", WriteFile(folder, "quota: {tenants: {default: {readers: 1}}}\n")}),
      HasSubstr("unknown key \"default.readers=1\""));
}

TEST(ConfigTest, TheWatermarkOfTheDeviceHoldsOnlyWhenLandmarksMayNotOverflow) {
  EXPECT_EQ(Parse({})->config.Admission().device_landmark_bytes_max, 0);
  const auto command = Parse({"--set", "store.device_landmark_overflow=refuse", "--set",
                              "store.device_landmark_bytes_max=1GiB"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->config.Admission().device_landmark_bytes_max, 1 << 30);
}

TEST(ConfigTest, TheExampleIsTaken) {
  const auto command = Parse({"--config", MNEME_SOURCE_DIR "/deploy/mneme.example.yaml"});
  ASSERT_TRUE(command.ok()) << command.status();
  const QuotaOptions quotas = command->config.Admission().quotas;
  EXPECT_EQ(quotas.tenants.at("research").readers_max, 32);
  EXPECT_EQ(quotas.tenants.at("default").readers_max, 16);
}

TEST(ConfigTest, ClientVariablesAreNoErrors) {
  EXPECT_TRUE(Parse({}, {"MNEME_ADDRESS=host:1", "PATH=/bin", "MNEMEX=1"}).ok());
}

TEST(ConfigTest, PrintedConfigurationIsTakenBack) {
  const auto command = Parse({"--print-config", "--set", "server.tenants=a,b.c", "--set",
                              "engine.idle_flush_seconds=0.123456", "--set", "server.http=off",
                              "--data-dir", "odd: \"path\" #1"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->action, CommandLine::Action::kPrintConfig);
  const std::string printed = ToYaml(command->config);
  ServerConfig again;
  const absl::Status status = ApplyYaml(printed, "printed", &again);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(ToYaml(again), printed);
  EXPECT_EQ(again.data_dir, "odd: \"path\" #1");
  EXPECT_EQ(again.server.http, "off");
  EXPECT_EQ(again.server.tenants, (std::vector<std::string>{"a", "b.c"}));
  EXPECT_EQ(again.engine.idle_flush, absl::Seconds(0.123456));
}

TEST(ConfigTest, EveryKeyTakesItsOwnDefaultFromEverySource) {
  const ServerConfig defaults;
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string value = key.get(defaults);
    ServerConfig config;
    EXPECT_TRUE(key.set(config, value).ok()) << key.full_name();
    EXPECT_TRUE(Parse({"--set", absl::StrCat(key.full_name(), "=", value)}).ok())
        << key.full_name();
    EXPECT_TRUE(Parse({}, {absl::StrCat(key.environment(), "=", value)}).ok()) << key.full_name();
  }
}

TEST(ConfigTest, KeysAndVariablesAreUnique) {
  std::set<std::string> names, variables;
  for (const ConfigKey& key : ConfigKeys()) {
    EXPECT_TRUE(names.insert(key.full_name()).second) << key.full_name();
    EXPECT_TRUE(variables.insert(key.environment()).second) << key.environment();
  }
}

TEST(ConfigTest, HelpNamesEveryKeyAndFlag) {
  const std::string help = HelpText();
  for (const ConfigKey& key : ConfigKeys()) {
    EXPECT_THAT(help, HasSubstr(absl::StrCat("\n  ", key.name, " = "))) << key.full_name();
  }
  for (const char* flag : {"--data-dir", "--model", "--listen", "--http", "--device", "--config",
                           "--print-config", "--version", "--help", "--log-level", "--set"}) {
    EXPECT_THAT(help, HasSubstr(flag));
  }
}

// The table of docs/configuration.md, as it must stand there.
std::string KeyTable() {
  const ServerConfig defaults;
  std::string table = "| key | default | allowed | what it is |\n|---|---|---|---|\n";
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string value = key.get(defaults);
    absl::StrAppend(&table, "| `", key.full_name(), "` | ",
                    value.empty() ? "empty" : absl::StrCat("`", value, "`"),
                    key.unit().empty() ? "" : absl::StrCat(" ", key.unit()), " | ", key.allowed,
                    " | ", key.help, " |\n");
  }
  return table;
}

TEST(ConfigTest, DocumentationListsEveryKey) {
  std::ifstream file(MNEME_SOURCE_DIR "/docs/configuration.md");
  std::ostringstream contents;
  contents << file.rdbuf();
  EXPECT_TRUE(absl::StrContains(contents.str(), KeyTable()))
      << "docs/configuration.md must hold this table:\n\n"
      << KeyTable();
}

}  // namespace
}  // namespace mneme
