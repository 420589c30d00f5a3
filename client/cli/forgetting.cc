#include "client/cli/forgetting.h"

#include <google/protobuf/util/time_util.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/admin_client.h"
#include "client/cli/resource_json.h"
#include "client/cli/terminal.h"
#include "client/rpc_error.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

std::string ReceiptWords(const v1::ForgetReceipt& receipt) {
  using google::protobuf::util::TimeUtil;
  if (receipt.held_document_count() > 0) {
    std::string holders;
    for (const std::string& memory : receipt.held_by()) {
      absl::StrAppend(&holders, holders.empty() ? "" : ", ", ResourceId(memory));
    }
    const std::string gone =
        receipt.text_bytes() == 0
            ? ""
            : absl::StrCat(Counted(receipt.text_bytes(), "byte", "bytes"), " of text are gone; ");
    return absl::StrCat(gone, Counted(receipt.held_document_count(), "document", "documents"),
                        " with ", Counted(receipt.held_text_bytes(), "byte", "bytes"),
                        " of text stay, held by ", holders);
  }
  const double seconds = static_cast<double>(TimeUtil::DurationToMicroseconds(
                             receipt.purge_time() - receipt.delete_time())) *
                         1e-6;
  return absl::StrCat(Counted(receipt.document_count(), "document", "documents"), ", ",
                      Counted(receipt.text_bytes(), "byte", "bytes"), " of text, ",
                      Counted(receipt.token_count(), "token", "tokens"), ", ",
                      Counted(receipt.chunk_count(), "chunk", "chunks"), ", ",
                      Counted(receipt.page_count(), "page", "pages"), "; deleted ",
                      TimeUtil::ToString(receipt.delete_time()), ", out of the last file ",
                      absl::StrFormat("%.3f s later", seconds));
}

// What to say while the last byte is not gone: why, as far as the server's counts tell.
void TellWhyItWaits(Session& session, const std::string& name, const std::string& operation) {
  std::string why = "files are rewritten, or a question that began before still reads it";
  AdminClient admin(session.client().channel());
  const absl::StatusOr<v1::Activity> activity = admin.GetActivity(1, session.call());
  if (activity.ok()) {
    for (const v1::Activity::Sample& sample : activity->samples()) {
      if (sample.series() != "mneme_purge_failures_total" || sample.value() == 0) continue;
      why = absl::StrCat("purges have failed ",
                         Counted(static_cast<int64_t>(sample.value()), "time", "times"),
                         " since the server started and are tried again; its log says why");
    }
  }
  absl::FPrintF(stderr,
                "mneme: %s is deleted and not found any more; waiting until its last byte has left "
                "the server's files (%s): %s\n",
                EscapeForTerminal(name), EscapeForTerminal(operation), why);
}

// The wait for an operation has ended before the operation.
void TellThatItGoesOn(const std::string& name, const std::string& operation) {
  absl::FPrintF(stderr,
                "mneme: the deletion of %s is durable, and what is left of it goes as %s, also "
                "after a restart of the server; only the wait for the receipt has ended\n",
                EscapeForTerminal(name), EscapeForTerminal(operation));
}

}  // namespace

const char kForgettingJsonNotes[] =
    "Waits until no file of the server has a byte of it, and prints the receipt.\n\n--json: "
    "{deleted, operation, receipt: {documents, text_bytes, tokens, chunks, pages, delete_time,\n"
    "purge_time (null: held), held_by, held_documents, held_text_bytes}}; no receipt with "
    "--no-wait, or when the server was restarted after the purge, or\nwhen "
    "the wait was cut off (the exit status is then that of the error)\n";

FlagSpec NoWaitFlag() {
  return {"--no-wait", "", "return when the deletion is durable, before the last byte is gone",
          FlagSpec::Kind::kSwitch};
}

FlagSpec EverywhereFlag() {
  return {"--everywhere", "", "from all forks too, and theirs", FlagSpec::Kind::kSwitch};
}

absl::Status FinishForgetting(Session& session, const std::string& name, const std::string& done,
                              const absl::StatusOr<google::longrunning::Operation>& begun) {
  if (IsOutcomeUnknown(begun.status()) && !session.json()) {
    absl::FPrintF(stderr,
                  "mneme: no answer came: whether %s is deleted is not known. The same command "
                  "again deletes it, or says that it is gone\n",
                  EscapeForTerminal(name));
  }
  RETURN_IF_ERROR(begun.status());
  const google::longrunning::Operation& operation = *begun;
  Json object = {{"deleted", name}, {"operation", operation.name()}};
  std::string words = done;
  if (!session.line().Has("--no-wait") && !operation.name().empty()) {
    const absl::StatusOr<google::longrunning::Operation> ended = session.client().WaitOperation(
        operation, session.call(), [&] { TellWhyItWaits(session, name, operation.name()); });
    v1::ForgetReceipt receipt;
    if (ended.ok() && ended->response().UnpackTo(&receipt)) {
      object["receipt"] = ReceiptJson(receipt);
      absl::StrAppend(&words, ": ", ReceiptWords(receipt));
    } else if (absl::IsNotFound(ended.status())) {
      absl::StrAppend(&words,
                      ", and its purge has ended; the server was restarted and has no receipt");
    } else if (!ended.ok()) {
      if (session.json()) {
        PrintJson(object);
      } else {
        TellThatItGoesOn(name, operation.name());
      }
      return ended.status();
    }
  }
  if (session.json()) {
    PrintJson(object);
  } else {
    Print(absl::StrCat(words, "\n"));
  }
  return absl::OkStatus();
}

}  // namespace mneme
