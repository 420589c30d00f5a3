// What `mneme top` shows: tiers, pages, queues, rates and slow requests as text, from two states of
// the server.

#ifndef MNEME_CLIENT_CLI_TOP_VIEW_H_
#define MNEME_CLIENT_CLI_TOP_VIEW_H_

#include <string>

#include "client/cli/session.h"
#include "mneme/v1/admin.pb.h"

namespace mneme {

// Lines of at most `columns` columns. Rates are those since `before`; null: there are none.
std::string RenderTop(const v1::Activity& now, const v1::Activity* before, int columns);

// {time, samples: {series: value}, slow_requests: [{method, resource, end_time, seconds, code}]}
Json ActivityJson(const v1::Activity& activity);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_TOP_VIEW_H_
