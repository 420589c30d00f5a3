// Session: one run of the `mneme` program: its checked arguments, the client, and the ways to
// print.

#ifndef MNEME_CLIENT_CLI_SESSION_H_
#define MNEME_CLIENT_CLI_SESSION_H_

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/cli/command_line.h"
#include "client/client.h"

namespace mneme {

// Keys stay in the order in which they were set.
using Json = nlohmann::ordered_json;

// Thread-compatible. All references are borrowed.
class Session {
 public:
  Session(const CommandLine& line, std::string address, Client& client, CallOptions call)
      : line_(line), address_(std::move(address)), client_(client), call_(call) {}

  const CommandLine& line() const { return line_; }
  const std::string& positional(size_t i) const { return line_.positionals[i]; }
  const std::string& address() const { return address_; }
  bool json() const { return line_.Has("--json"); }
  Client& client() { return client_; }
  const CallOptions& call() const { return call_; }
  bool interrupted() const { return call_.cancellation->cancelled(); }

  // tenants/{tenant}.
  std::string TenantName() const;
  // Full name of a memory given as id or full name; of several, separated by commas.
  std::string MemoryName(absl::string_view memory) const;
  std::vector<std::string> MemoryNames(absl::string_view memories) const;
  // Full name of a document of `memory`, given as id or full name.
  std::string DocumentName(absl::string_view memory, absl::string_view document) const;

 private:
  const CommandLine& line_;
  const std::string address_;
  Client& client_;
  const CallOptions call_;
};

// The last part of a resource name.
std::string ResourceId(absl::string_view name);
// The memory's id in a document's full name.
std::string MemoryIdOf(absl::string_view document_name);

// Standard output. What could not be written is noticed by FlushOutput.
void Print(absl::string_view text);
void PrintJson(const Json& object);
// UNKNOWN with the system's words when standard output did not take everything.
absl::Status FlushOutput();

// What went wrong in words for a person: the server's message, or what to do when no server
// answers.
std::string ErrorMessage(const absl::Status& status, absl::string_view address);
// {"code", "message", "reason", "metadata"}.
Json ErrorJson(const absl::Status& status, absl::string_view address);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_SESSION_H_
