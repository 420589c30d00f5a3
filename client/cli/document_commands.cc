// documents, show, forget.

#include <unistd.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/forgetting.h"
#include "client/cli/resource_json.h"
#include "client/cli/session.h"
#include "client/cli/terminal.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

absl::Status Documents(Session& session) {
  Json documents = Json::array();
  bool any = false;
  RETURN_IF_ERROR(session.client().ListDocuments(
      session.MemoryName(session.positional(0)),
      [&](const v1::Document& document) {
        if (session.json()) {
          documents.push_back(DocumentJson(document));
          return true;
        }
        if (!any)
          Print(absl::StrFormat("%-38s %-8s %15s %15s %13s\n", "document", "state", "durable bytes",
                                "visible bytes", "tokens"));
        any = true;
        Print(absl::StrFormat("%-38s %-8s %15s %15s %13s\n", ResourceId(document.name()),
                              absl::AsciiStrToLower(v1::Document::State_Name(document.state())),
                              WithCommas(document.durable_bytes()),
                              WithCommas(document.visible_bytes()),
                              WithCommas(document.token_count())));
        return true;
      },
      session.call()));
  if (session.json()) {
    PrintJson({{"documents", documents}});
  } else if (!any) {
    Print("no documents; mneme ingest adds some\n");
  }
  return absl::OkStatus();
}

absl::Status Show(Session& session) {
  v1::ReadDocumentRequest request;
  request.set_name(session.DocumentName(session.positional(0), session.positional(1)));
  request.set_byte_begin(session.line().Integer("--begin", 0));
  request.set_byte_end(session.line().Integer("--end", 0));
  std::string text;
  // A terminal must not obey what a document says; a file or a pipe gets its very bytes.
  const bool whole = session.json() || isatty(STDOUT_FILENO);
  RETURN_IF_ERROR(session.client().ReadDocument(
      request,
      [&](absl::string_view piece) {
        if (!whole) {
          Print(piece);
          return ferror(stdout) == 0;
        }
        absl::StrAppend(&text, piece);
        if (session.json()) return true;
        // Up to the last line end: a character is not split there.
        const size_t lines = text.rfind('\n') + 1;
        Print(EscapeForTerminal(absl::string_view(text).substr(0, lines), /*keep_lines=*/true));
        text.erase(0, lines);
        return ferror(stdout) == 0;
      },
      session.call()));
  if (session.json()) {
    PrintJson({{"document", ResourceId(request.name())},
               {"name", request.name()},
               {"byte_begin", request.byte_begin()},
               {"byte_end", request.byte_begin() + static_cast<int64_t>(text.size())},
               {"text", text}});
  } else if (whole) {
    Print(EscapeForTerminal(text, /*keep_lines=*/true));
    Print("\n");
  }
  return absl::OkStatus();
}

absl::Status Forget(Session& session) {
  const std::string name = session.DocumentName(session.positional(0), session.positional(1));
  return FinishForgetting(
      session, name, absl::StrCat("forgot ", ResourceId(name)),
      session.client().DeleteDocument(name, session.call(), session.line().Has("--everywhere")));
}

}  // namespace

CommandSpec DocumentsCommand() {
  return {.name = "documents",
          .summary = "lists a memory's documents, oldest first",
          .positionals = {{"M", "the memory"}},
          .notes =
              "--json: {documents: [{document, memory, name, state, create_time, durable_bytes, "
              "visible_bytes,\n"
              "tokens, chunks, expire_time, shared}]}; state is open, sealed or damaged\n",
          .run = Documents};
}

CommandSpec ShowCommand() {
  return {.name = "show",
          .summary = "prints a document's text",
          .positionals = {{"M", "the memory"}, {"D", "the document"}},
          .flags = {{"--begin", "BYTE", "first byte wanted (default: 0)", FlagSpec::Kind::kInteger,
                     0, 1e15},
                    {"--end", "BYTE", "one past the last byte wanted (default: the end)",
                     FlagSpec::Kind::kInteger, 1, 1e15}},
          .notes =
              "A file or pipe gets the stored bytes exactly; on a terminal control characters are "
              "shown as \\xNN.\n\n"
              "--json: {document, name, byte_begin, byte_end, text}\n",
          .run = Show,
          .check = [](const CommandLine& line) -> absl::Status {
            const int64_t begin = line.Integer("--begin", 0);
            const int64_t end = line.Integer("--end", begin);
            if (end >= begin) return absl::OkStatus();
            return absl::InvalidArgumentError(
                absl::StrCat("--end ", end, " is before --begin ", begin));
          }};
}

CommandSpec ForgetCommand() {
  return {.name = "forget",
          .summary = "deletes a document; nothing of it stays",
          .positionals = {{"M", "the memory"}, {"D", "the document"}},
          .flags = {EverywhereFlag(), NoWaitFlag()},
          .notes = kForgettingJsonNotes,
          .run = Forget};
}

}  // namespace mneme
