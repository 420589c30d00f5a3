// What the actors of the crash test send: texts whose every part can be told from all others, and
// documents through every crash.

#ifndef MNEME_TESTS_CRASH_SENDING_H_
#define MNEME_TESTS_CRASH_SENDING_H_

#include <random>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "tests/crash/actors.h"

namespace mneme {

// Words, digits and a few characters of two to four bytes, so that pieces break inside sequences;
// and every so often a marker.
std::string RandomText(std::mt19937& random, size_t bytes);
// The markers that stand whole in a text: words of 24 letters that no other text has.
std::vector<std::string> MarkersIn(absl::string_view text);

absl::Duration RandomMilliseconds(std::mt19937& random, int below);

struct SendOptions {
  absl::Duration ttl = absl::InfiniteDuration();
  bool seal = false;
};

// Sends a document, or more of one that is there, until all of `text` is durable, and tells the
// model, which knows of it already. Without a time to live it must arrive.
void SendText(Stage& stage, std::mt19937& random, const std::string& document,
              const std::string& text, const SendOptions& options);
// The same of a new one of up to so many bytes.
void SendDocument(Stage& stage, std::mt19937& random, const std::string& document, size_t bytes_max,
                  absl::Duration ttl = absl::InfiniteDuration());

// Gives a memory another policy, and tells the model.
void UpdateMemory(Stage& stage, const std::string& memory, const AckedPolicy& policy);
// The same, with a time to live that is over when this returns.
void ExpireMemory(Stage& stage, std::mt19937& random, const std::string& memory,
                  AckedPolicy* policy);

v1::Memory MemoryMessage(const std::string& name, const AckedPolicy& policy);

// An error that a killed server leaves behind: the operation is tried again.
bool IsOfACrash(const absl::Status& status);

}  // namespace mneme

#endif  // MNEME_TESTS_CRASH_SENDING_H_
