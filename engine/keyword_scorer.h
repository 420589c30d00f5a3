// BM25 of a few texts for a question: how much the words that they share say, by the texts alone.
//
//   score(q, t) = min(1, 16 / |q|) sum over the words w of q, each once, of
//                   idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b |t| / average |t|))
//   idf(w) = ln(1 + (N - df + 1/2) / (df + 1/2)),   k1 = 1.2, b = 0.75
//
// tf: how often w stands in t; |t|: words of t; |q|: different words of q; N: texts; df: texts that
// have w. The first factor is ours: scores of long questions stay comparable with the network's,
// which do not grow with the question. What a word is: engine/text_words.h. There is no index:
// a word counts for as much as it is rare among the texts at hand. Source: Robertson and Zaragoza,
// The Probabilistic Relevance Framework: BM25 and Beyond, 2009; idf with the 1 inside of the
// logarithm, as Lucene has it, so that no word counts against a text.

#ifndef MNEME_ENGINE_KEYWORD_SCORER_H_
#define MNEME_ENGINE_KEYWORD_SCORER_H_

#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme {

// A score for each text, in order, none below 0; 0 where it has no word of the question.
// The texts' words are taken as they stand: what the end of a chunk cuts off is not completed, for
// the order of chunks was measured to be no better with whole words.
std::vector<double> KeywordScores(absl::string_view question,
                                  absl::Span<const absl::string_view> texts);

}  // namespace mneme

#endif  // MNEME_ENGINE_KEYWORD_SCORER_H_
