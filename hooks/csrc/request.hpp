// A request, or a step of an engine, while it is open: what was promised, and when it was where.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cstdint>

#include "table.hpp"

namespace herald {

// What a request was promised; 0: not that.
struct Slo {
  int64_t latency_ns = 0;  // arrival -> done
  int64_t ttft_ns = 0;     // arrival -> first token
  int64_t tpot_ns = 0;     // mean time per further token

  bool any() const { return latency_ns || ttft_ns || tpot_ns; }
};

// What steps of an engine took beyond their time alone: running sums, so that a request's share is a difference.
struct Lost {
  int64_t ns = 0;
  uint64_t unknown = 0;  // steps of which nothing can be said

  void add(int64_t service_ns, int64_t alone_ns) {
    if (alone_ns < 0) {
      ++unknown;
    } else {
      ns += std::max<int64_t>(0, service_ns - alone_ns);
    }
  }
};

// A request, or a step of an engine.
struct Request {
  int64_t arrival_ns = 0;
  int64_t begin_ns = 0;
  int64_t due_ns = kNoDeadline;  // by when its work must be done
  pthread_t thread{};
  uint64_t queue = 0;  // the stream (CUDA) or thread (CPU) that ended it: its work came after that of those before it
  bool ended = false;
  bool holds = true;  // false once it overran max_hold: it lost the gate
  bool out_of_slack = false;
  // Of requests only.
  Slo slo;
  int64_t first_token_ns = 0;
  uint32_t tokens = 0;
  bool tells_tokens = false;
  Lost lost_before;  // by the job before it began
  int64_t lost_at_token_ns = 0;

  // Where a request says tokens but no steps, there is no telling how far the next one is: once the first is out, it
  // is due after one time per token, so that the rest runs without slack.
  int64_t next_due_ns() const {
    int64_t due = slo.latency_ns ? arrival_ns + slo.latency_ns : kNoDeadline;
    if (slo.ttft_ns && !first_token_ns) due = std::min(due, arrival_ns + slo.ttft_ns);
    if (slo.tpot_ns && first_token_ns) due = std::min(due, first_token_ns + slo.tpot_ns);
    return due;
  }
};

}  // namespace herald
