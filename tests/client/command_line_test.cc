#include "client/cli/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/cli/commands.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<CommandLine> Parse(std::vector<std::string> arguments) {
  return ParseCommandLine(AllCommands(), arguments);
}

std::string ErrorOf(std::vector<std::string> arguments) {
  return std::string(Parse(std::move(arguments)).status().message());
}

TEST(CommandLineTest, FlagsMayStandAnywhere) {
  for (const auto& arguments : std::vector<std::vector<std::string>>{
           {"search", "m", "question", "-k", "5", "--explain", "--address", "a:1"},
           {"--address=a:1", "search", "-k5", "--explain", "m", "question"},
           {"--address", "a:1", "search", "m", "--explain", "-k", "5", "--", "question"}}) {
    auto line = Parse(arguments);
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_EQ(line->command->name, "search");
    EXPECT_THAT(line->positionals, ElementsAre("m", "question"));
    EXPECT_EQ(line->Integer("-k", 8), 5);
    EXPECT_TRUE(line->Has("--explain"));
    EXPECT_EQ(line->Text("--address"), "a:1");
    EXPECT_EQ(line->Integer("--context", 17), 17);
  }
}

TEST(CommandLineTest, TwoDashesEndTheFlags) {
  auto line = Parse({"search", "m", "--", "--explain"});
  ASSERT_TRUE(line.ok());
  EXPECT_THAT(line->positionals, ElementsAre("m", "--explain"));
  EXPECT_FALSE(line->Has("--explain"));
}

TEST(CommandLineTest, OneDashIsAWord) {
  auto line = Parse({"ingest", "m", "-", "--document", "d"});
  ASSERT_TRUE(line.ok());
  EXPECT_THAT(line->positionals, ElementsAre("m", "-"));
}

TEST(CommandLineTest, WhatIsWrongIsNamed) {
  EXPECT_EQ(ErrorOf({}), "no command was named");
  EXPECT_EQ(ErrorOf({"serach", "m"}), "unknown command serach; did you mean search?");
  EXPECT_EQ(ErrorOf({"zzz"}), "unknown command zzz");
  EXPECT_EQ(ErrorOf({"restore", "3"}),
            "unknown command restore: a backup is restored offline, into an empty directory, with "
            "mneme-server --restore-from DIR[:ID] --data-dir NEW");
  EXPECT_EQ(ErrorOf({"search", "m", "q", "--explian"}),
            "unknown flag --explian of mneme search; did you mean --explain?");
  EXPECT_THAT(ErrorOf({"search", "m", "-q"}),
              HasSubstr("unknown flag -q of mneme search; -- goes before text"));
  EXPECT_EQ(ErrorOf({"--nope"}), "unknown flag --nope");
  EXPECT_THAT(ErrorOf({"search", "m"}), HasSubstr("mneme search needs TEXT"));
  EXPECT_THAT(ErrorOf({"search", "m", "q", "extra"}), HasSubstr("unexpected \"extra\""));
  EXPECT_EQ(ErrorOf({"search", "m", "q", "-k"}), "-k needs a value");
  EXPECT_EQ(ErrorOf({"search", "m", "q", "-k", "1", "-k", "2"}), "-k was given twice");
  EXPECT_EQ(ErrorOf({"search", "m", "q", "-k", "0"}),
            "-k 0: a whole number of at least 1 is expected");
  EXPECT_EQ(ErrorOf({"search", "m", "q", "-k", "1.5"}),
            "-k 1.5: a whole number of at least 1 is expected");
  EXPECT_EQ(ErrorOf({"search", "m", "q", "-k="}).empty(), false);
  EXPECT_EQ(ErrorOf({"search", "m", "q", "--context="}), "--context: the value is empty");
  EXPECT_EQ(ErrorOf({"search", "m", "q", "--explain=yes"}), "--explain takes no value");
  EXPECT_EQ(ErrorOf({"ask", "m", "q", "--temperature", "nan"}),
            "--temperature nan: a number from 0 to 10 is expected");
  EXPECT_EQ(ErrorOf({"ask", "m", "q", "--temperature", "11"}),
            "--temperature 11: a number from 0 to 10 is expected");
  EXPECT_THAT(ErrorOf({"ingest", "m", "-"}), HasSubstr("--document"));
  EXPECT_THAT(ErrorOf({"ingest", "m", "/tmp", "--document", "d"}), HasSubstr("/tmp is a folder"));
}

TEST(CommandLineTest, WhatIsNotUtf8IsNamedUnlessItIsAPath) {
  EXPECT_EQ(ErrorOf({"search", "m", "bad\xff"}), "TEXT is not UTF-8 at byte 3");
  EXPECT_EQ(ErrorOf({"search", "m\xff", "q"}), "M is not UTF-8 at byte 1");
  EXPECT_EQ(ErrorOf({"score", "m", "text", "--prompt", "\xc3"}), "--prompt is not UTF-8 at byte 0");
  EXPECT_EQ(ErrorOf({"score", "m", "text", "--prompt=\xc3"}), "argument 4 is not UTF-8 at byte 9");
  EXPECT_EQ(ErrorOf({"se\xff"}), "the command is not UTF-8 at byte 2");
  EXPECT_TRUE(Parse({"ingest", "m", "file\xff", "--document", "d"}).ok());
  EXPECT_EQ(ErrorOf({"ingest", "m\xff", "file"}), "M is not UTF-8 at byte 1");
}

TEST(CommandLineTest, ARangeThatEndsBeforeItBeginsIsWrongUsage) {
  EXPECT_EQ(ErrorOf({"show", "m", "d", "--begin", "5", "--end", "2"}),
            "--end 2 is before --begin 5");
  EXPECT_TRUE(Parse({"show", "m", "d", "--begin", "5", "--end", "5"}).ok());
  EXPECT_TRUE(Parse({"show", "m", "d", "--begin", "5"}).ok());
}

TEST(CommandLineTest, HelpNeedsNothingElse) {
  EXPECT_TRUE(Parse({"--help"}).ok());
  EXPECT_TRUE(Parse({"search", "--help"}).ok());
  EXPECT_TRUE(Parse({"--version"}).ok());
}

TEST(CommandLineTest, HelpNamesEveryCommandAndFlag) {
  const std::string program = ProgramHelp(AllCommands());
  for (const CommandSpec& command : AllCommands()) {
    EXPECT_THAT(program, HasSubstr("\n  " + command.name + " "));
    const std::string help = CommandHelp(command);
    EXPECT_THAT(help, HasSubstr("usage: mneme " + command.name));
    EXPECT_THAT(help, HasSubstr("--json: {"));
    for (const FlagSpec& flag : command.flags) EXPECT_THAT(help, HasSubstr("\n  " + flag.name));
    for (const FlagSpec& flag : GlobalFlags()) EXPECT_THAT(help, HasSubstr("\n  " + flag.name));
    for (const auto& [name, explanation] : command.positionals)
      EXPECT_THAT(help, HasSubstr("\n  " + name));
  }
}

}  // namespace
}  // namespace mneme
