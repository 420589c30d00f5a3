// Opaque page tokens, bound to one list (its method and parent) by a checksum: a token of another
// list is refused.

#ifndef MNEME_SERVER_PAGE_TOKEN_H_
#define MNEME_SERVER_PAGE_TOKEN_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

// Token for what follows `position` (the last item's place in the list's order) in the list of
// `method` under `parent`.
std::string MakePageToken(absl::string_view method, absl::string_view parent,
                          absl::string_view position);

// The position; INVALID_ARGUMENT (field page_token) when the token is damaged or of another list.
absl::StatusOr<std::string> ParsePageToken(absl::string_view method, absl::string_view parent,
                                           absl::string_view token);

// Items of a page: 100 for 0, at most 1000. INVALID_ARGUMENT (field page_size) when negative.
absl::StatusOr<int> PageSize(int asked);

}  // namespace mneme

#endif  // MNEME_SERVER_PAGE_TOKEN_H_
