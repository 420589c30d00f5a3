#include "client/cli/forgetting.h"

#include <google/protobuf/util/time_util.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/resource_json.h"
#include "client/cli/terminal.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

std::string ReceiptWords(const v1::ForgetReceipt& receipt) {
  using google::protobuf::util::TimeUtil;
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

}  // namespace

const char kForgettingJsonNotes[] =
    "Waits until no file of the server has a byte of it, and prints the receipt.\n\n--json: "
    "{deleted, operation, receipt: {documents, text_bytes, tokens, chunks, pages, delete_time,\n"
    "purge_time}}; no receipt with --no-wait, or when the server was restarted after the purge\n";

FlagSpec NoWaitFlag() {
  return {"--no-wait", "", "return when the deletion is durable, before the last byte is gone",
          FlagSpec::Kind::kSwitch};
}

absl::Status FinishForgetting(Session& session, const std::string& name, const std::string& done,
                              const google::longrunning::Operation& operation) {
  Json object = {{"deleted", name}, {"operation", operation.name()}};
  std::string words = done;
  if (!session.line().Has("--no-wait") && !operation.name().empty()) {
    const absl::StatusOr<google::longrunning::Operation> ended =
        session.client().WaitOperation(operation, session.call());
    v1::ForgetReceipt receipt;
    if (ended.ok() && ended->response().UnpackTo(&receipt)) {
      object["receipt"] = ReceiptJson(receipt);
      absl::StrAppend(&words, ": ", ReceiptWords(receipt));
    } else if (absl::IsNotFound(ended.status())) {
      absl::StrAppend(&words,
                      ", and its purge has ended; the server was restarted and has no receipt");
    } else {
      RETURN_IF_ERROR(ended.status());
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
