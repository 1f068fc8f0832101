// What is written down of requests: whether they met what was promised, and whether they would have, had the job had
// the device to itself. The caller's lock covers all of it.
#pragma once

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

// When a request was where. What was never told is missed where it was promised.
struct Passage {
  int64_t arrival_ns;
  int64_t first_token_ns;  // 0: not told
  int64_t done_ns;
  uint32_t tokens;  // the first included; 0: not told

  // Mean time per further token; -1: there is none to speak of.
  int64_t tpot_ns() const {
    return first_token_ns && tokens > 1 ? std::max<int64_t>(0, done_ns - first_token_ns) / (tokens - 1) : -1;
  }

  bool meets(const Slo& slo) const {
    if (slo.latency_ns && done_ns - arrival_ns > slo.latency_ns) return false;
    if (slo.ttft_ns && (!first_token_ns || first_token_ns - arrival_ns > slo.ttft_ns)) return false;
    return !slo.tpot_ns || (first_token_ns && tokens && tpot_ns() <= slo.tpot_ns);
  }
};

// Time with work at hand, and of it with the gate of the device open. What others do to the gate between two calls is
// seen at the second: the agent calls at least every 10 ms of an open request that it knows of.
class BusyTime {
 public:
  explicit BusyTime(JobRow& row) : row_(row) {}

  // Books the time since the last call, under the state that held then.
  void pass(int64_t now) {
    const auto spent = static_cast<uint64_t>(std::max<int64_t>(0, now - at_ns_));
    at_ns_ = std::max(at_ns_, now);
    if (!busy_) return;
    row_.busy_ns.fetch_add(spent, std::memory_order_relaxed);
    if (open_) row_.busy_open_ns.fetch_add(spent, std::memory_order_relaxed);
  }

  void set_busy(bool busy) {
    if (busy && !busy_) since_ns_ = at_ns_;
    busy_ = busy;
  }

  void set_gate(bool open) {
    if (open != open_) open_since_ns_ = open ? at_ns_ : INT64_MAX;
    open_ = open;
  }

  int64_t open_since_ns() const { return open_since_ns_; }  // the gate; INT64_MAX: it is closed
  int64_t since_ns() const { return since_ns_; }  // the begin of this busy period

 private:
  JobRow& row_;
  int64_t at_ns_ = 0;
  int64_t since_ns_ = 0;
  int64_t open_since_ns_ = INT64_MAX;
  bool busy_ = false;
  bool open_ = false;
};

// When the requests of one queue would have been done alone: a clock that serves each on arrival, or after the one
// before it, in the time that it takes alone. Never later than they were.
class AloneClock {
 public:
  // `alone_ns` < 0: not known, and the clock says nothing of this request. Returns when it would have been done, or -1.
  int64_t finish(int64_t arrival_ns, int64_t alone_ns, int64_t done_ns) {
    if (alone_ns < 0) return -1;
    return done_ns_ = std::min(done_ns, std::max(done_ns_, arrival_ns) + alone_ns);
  }

 private:
  int64_t done_ns_ = 0;
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

}  // namespace herald
