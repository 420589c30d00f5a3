// The explanation of a search, token by token, gathered into the words of the question.

#ifndef MNEME_CLIENT_CLI_WORD_WEIGHTS_H_
#define MNEME_CLIENT_CLI_WORD_WEIGHTS_H_

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "mneme/v1/mneme.pb.h"

namespace mneme {

struct WordWeights {
  // Without the whitespace around it.
  std::string word;
  // One a passage, in [0, 1]: the greatest among the word's tokens.
  std::vector<double> weights;
};

// A word is a run of tokens up to the next whitespace. `passages`: how many the response has.
std::vector<WordWeights> WordsOf(
    const google::protobuf::RepeatedPtrField<v1::TokenExplanation>& tokens, int passages);

// "chosen by: key 0.71, pass 0.40": the words that read passage `passage` most, at most four; says
// so when none did.
std::string ChosenBy(const std::vector<WordWeights>& words, int passage);

// A table of words (rows) and passages (columns #1, #2, ...), as many columns as `width` holds.
std::string WordTable(const std::vector<WordWeights>& words, int passages, int width);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_WORD_WEIGHTS_H_
