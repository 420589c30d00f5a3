// The words of a text, as search compares them.
//
// The text is brought into the form NFKC_Casefold of the Unicode standard (chapter 3.13): no upper
// case, one spelling of composed and of full-width characters, nothing invisible (soft hyphens,
// joiners, byte order marks). A word is a run of letters, marks and digits of any script; another
// symbol (So: an emoji, a degree sign) is a word of its own; everything else separates. So in
// writing without spaces a run of letters between two signs is one word. There is no stemming.

#ifndef MNEME_ENGINE_TEXT_WORDS_H_
#define MNEME_ENGINE_TEXT_WORDS_H_

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace mneme {

// Visits the words of `text` in order; what is visited lasts for that call. Text that is not UTF-8
// has none.
void ForEachWord(absl::string_view text, absl::FunctionRef<void(absl::string_view)> visit);

}  // namespace mneme

#endif  // MNEME_ENGINE_TEXT_WORDS_H_
