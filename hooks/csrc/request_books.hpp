// What is written down of requests: whether they met what was promised, and whether they would have, had the job had
// the device to itself. The caller's lock covers all of it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "job_progress.hpp"
#include "request.hpp"
#include "table.hpp"

namespace herald {

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

// The books of one job.
class Books {
 public:
  Books(JobRow& row, JobProgress& progress) : row_(row), progress_(progress) {}

  // The gate, as it was while the work ran.
  struct GateTimes {
    int64_t undisturbed_since_ns;  // closed from then on, and nothing else ran; INT64_MAX: not
    int64_t open_since_ns;         // open to all from then on; INT64_MAX: not
  };

  // The work of a request or step is done, and learnt from. Returns when it would have been done alone, -1 where that
  // is not known.
  int64_t book_work(uint32_t slot, const Request& r, int64_t now, const GateTimes& gate, bool engine) {
    const WorkKind kind = progress_.kind(slot);
    Queue& queue = queue_of(r.queue);
    const int64_t start = std::max(r.begin_ns, queue.done_ns);
    const int64_t service = now - start;
    const bool solo = gate.undisturbed_since_ns <= start;
    progress_.finish(slot, start, now, gate.undisturbed_since_ns);
    progress_.publish_alone(engine);
    const int64_t alone = solo ? service : alone_ns(kind, now - std::max(start, gate.undisturbed_since_ns));
    lost_.add(service, alone);
    queue.done_ns = last_done_ns_ = now;
    if (kind == kDecode) last_decode_ns_ = now;
    row_.service[bucket_of(now - r.begin_ns)].fetch_add(1, std::memory_order_relaxed);
    if (solo) {
      row_.solo_requests.fetch_add(1, std::memory_order_relaxed);
      row_.solo_ns.fetch_add(static_cast<uint64_t>(std::max<int64_t>(0, service)), std::memory_order_relaxed);
    } else if (gate.open_since_ns <= start) {
      row_.beside_requests.fetch_add(1, std::memory_order_relaxed);
      row_.beside_ns.fetch_add(static_cast<uint64_t>(std::max<int64_t>(0, service)), std::memory_order_relaxed);
    }
    return queue.alone.finish(r.arrival_ns, alone, now);
  }

  // A request is over. `alone_done_ns` as `book_work` says; -1 of an engine's.
  void book_request(const Request& r, int64_t now, int64_t alone_done_ns, bool engine) {
    const Passage passage{r.arrival_ns, r.first_token_ns, now, r.tokens};
    row_.latency[bucket_of(now - r.arrival_ns)].fetch_add(1, std::memory_order_relaxed);
    if (r.tells_tokens) row_.tokens.fetch_add(r.tokens, std::memory_order_relaxed);
    const int64_t tpot = passage.tpot_ns();
    if (tpot >= 0) row_.tpot[bucket_of(tpot)].fetch_add(1, std::memory_order_relaxed);
    row_.requests_done.fetch_add(1, std::memory_order_relaxed);
    if (!r.slo.any()) return;
    const bool met = passage.meets(r.slo);
    (met ? row_.slo_met : row_.slo_missed).fetch_add(1, std::memory_order_relaxed);
    if (met) return;
    const bool anyway = engine ? steps_missed_anyway(r, passage) : latency_missed_anyway(r, alone_done_ns);
    if (anyway) row_.missed_anyway.fetch_add(1, std::memory_order_relaxed);
  }

  const Lost& lost() const { return lost_; }
  int64_t last_done_ns() const { return last_done_ns_; }      // when any work was last done
  int64_t last_decode_ns() const { return last_decode_ns_; }  // likewise, a decode step

 private:
  static constexpr int64_t kDrainNs = 10'000'000;
  static constexpr uint32_t kQueues = 64;  // torch has 32 streams, servers some dozen threads; with more, waiting counts

  struct Queue {
    uint64_t queue = 0;
    int64_t done_ns = 0;  // when it last finished work: the next began there, though it may have been begun before
    AloneClock alone;
  };

  Queue& queue_of(uint64_t queue) {
    Queue* oldest = &queues_[0];
    for (Queue& q : queues_) {
      if (q.queue == queue) return q;
      if (q.done_ns < oldest->done_ns) oldest = &q;
    }
    return *oldest = {queue, 0, {}};
  }

  // What work that ran beside training for a part would have taken alone: as long as most, or where it ran behind the
  // closed gate for longer than that at its end (a host that stalls), so long at least, less what training had queued.
  // -1: not known.
  int64_t alone_ns(WorkKind kind, int64_t closed_for_ns) const {
    const int64_t median = progress_.median_alone_ns(kind);
    return median < 0 ? -1 : std::max(median, closed_for_ns - kDrainNs);
  }

  // Whether a request that is work itself would have missed alone: by its latency, since which part of it was lost
  // before the first token is not known.
  static bool latency_missed_anyway(const Request& r, int64_t alone_done_ns) {
    return alone_done_ns >= 0 && r.slo.latency_ns && alone_done_ns - r.arrival_ns > r.slo.latency_ns;
  }

  // Likewise of an engine's: by what its steps lost meanwhile.
  bool steps_missed_anyway(const Request& r, Passage passage) const {
    if (lost_.unknown != r.lost_before.unknown) return false;
    passage.done_ns -= lost_.ns - r.lost_before.ns;
    if (r.first_token_ns) passage.first_token_ns -= r.lost_at_token_ns - r.lost_before.ns;
    return !passage.meets(r.slo);
  }

  JobRow& row_;
  JobProgress& progress_;
  Queue queues_[kQueues];
  Lost lost_;
  int64_t last_done_ns_ = 0;
  int64_t last_decode_ns_ = 0;
};

}  // namespace herald
