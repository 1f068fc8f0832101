// The high-priority side: open requests of one job, and when they close and open the gate.
//
// What needs the device is *work*: a request, or, from its first step on, a step of an engine (continuous batching),
// whose requests are then only told of and judged. Work of one job is taken to be one queue in the order of its begins.
//
// begin() and end() are called by serving threads, watch() by the process's agent. Completion on CUDA is seen through
// words that the requests' own streams write: no CUDA call, no GIL, any number of threads, streams and overlaps.
// Progress has words of its own, so that a mark that lands late, on another stream, can never undo a completion.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "closing.hpp"
#include "cuda_driver.hpp"
#include "hold.hpp"
#include "job_progress.hpp"
#include "mutex.hpp"
#include "request_books.hpp"
#include "table.hpp"

namespace herald {

class HighJob {
 public:
  static constexpr uint32_t kMostRequests = 4096;
  static constexpr uint32_t kMostOpenSteps = 64;  // with slots of their own, so that requests never keep a step out
  static constexpr uint32_t kSlots = kMostRequests + kMostOpenSteps;
  static constexpr uint32_t kNumWords = 2 * kSlots;  // of completion, then of progress
  static constexpr int64_t kNever = INT64_MAX;

  // `words`: kNumWords zeroed 32-bit words, mapped for CUDA at `words_device`; null on CPU.
  HighJob(TableView table, uint32_t row, int cuda_index, a32* words, uint64_t words_device)
      : table_(table), row_(table.row(row)), cuda_index_(cuda_index), words_(words), words_device_(words_device),
        hold_(table_, row_), busy_(row_), progress_(row_, words ? words + kSlots : nullptr, kSlots),
        books_(row_, progress_) {
    requests_.resize(kSlots);
    free_requests_.reserve(kMostRequests);
    for (uint32_t i = kMostRequests; i-- > 0;) free_requests_.push_back(i);
    for (uint32_t i = kSlots; i-- > kMostRequests;) free_steps_.push_back(i);
  }

  const TableView& table() const { return table_; }
  int cuda_index() const { return cuda_index_; }

  // Id of the new request, or -1 when kMostRequests are open (it then runs untracked: inference never waits).
  // `*alarm_ns`: when the agent must look again for the gate to close in time, kNever if it need not.
  int64_t begin(int64_t arrival_ns, const Slo& slo, int64_t* alarm_ns) {
    Guard guard(mutex_);
    *alarm_ns = kNever;
    if (detached_ || free_requests_.empty()) return -1;
    const int64_t now = now_ns();
    const uint32_t slot = open(free_requests_, kRequest, now);
    Request& r = requests_[slot];
    r.arrival_ns = arrival_ns ? arrival_ns : now;
    r.slo = slo;
    r.due_ns = r.next_due_ns();
    r.lost_before = books_.lost();
    (engine_ ? told_ : work_).push_back(slot);
    holders_ += !engine_;
    row_.requests_begun.fetch_add(1, std::memory_order_relaxed);
    count_open_requests();
    *alarm_ns = settle(now);
    return id_of(slot);
  }

  // One iteration of an engine begins on this thread; ended like a request. The first makes the job an engine.
  // `due_ns` 0: by when the open requests need it. Id and alarm as for `begin`.
  int64_t begin_step(WorkKind kind, int64_t due_ns, int64_t* alarm_ns) {
    Guard guard(mutex_);
    *alarm_ns = kNever;
    if (detached_ || free_steps_.empty()) return -1;
    const int64_t now = now_ns();
    see_completions(now);
    become_engine();
    const uint32_t slot = open(free_steps_, kind, now);
    requests_[slot].due_ns = due_ns > 0 ? due_ns : step_due_ns(kind);
    work_.push_back(slot);
    ++holders_;
    *alarm_ns = settle(now);
    return id_of(slot);
  }

  // The request's first token is in the host's hands. Returns when the agent must look again.
  int64_t first_token(int64_t id) {
    Guard guard(mutex_);
    const uint32_t slot = slot_of(id);
    if (slot >= kMostRequests || requests_[slot].first_token_ns) return kNever;
    const int64_t now = now_ns();
    see_completions(now);  // of the step that made it, for one
    Request& r = requests_[slot];
    r.first_token_ns = now;
    r.lost_at_token_ns = books_.lost().ns;
    row_.ttft[bucket_of(now - r.arrival_ns)].fetch_add(1, std::memory_order_relaxed);
    const int64_t due = r.next_due_ns();
    r.out_of_slack = r.out_of_slack && due == r.due_ns;  // slack that it ran out of was that of the first token
    r.due_ns = due;
    return settle(now);
  }

  // Requests that wait outside, for an engine to take in. Returns when the agent must look again.
  int64_t set_queued(uint32_t count) {
    Guard guard(mutex_);
    if (detached_) return kNever;
    row_.queued.store(std::min(count, kMostQueued), std::memory_order_relaxed);
    return settle(now_ns());
  }

  // The request that a forward on this thread works for: the oldest that this thread has begun, or else, where others
  // begin them (a front end), the oldest of all. -1: none, or an engine's, whose forwards are parts of its steps.
  int64_t at_work() {
    Guard guard(mutex_);
    const pthread_t self = pthread_self();
    int64_t oldest = -1;
    if (engine_) return -1;
    for (size_t i = 0; i < work_.size() && i < kMostToSearch; ++i) {
      const Request& r = requests_[work_[i]];
      if (r.ended) continue;
      if (pthread_equal(r.thread, self)) return id_of(work_[i]);
      if (oldest < 0) oldest = id_of(work_[i]);
    }
    return oldest;
  }

  // The request's work up to a checkpoint, or (0) one more step of it, is enqueued on the current stream (CUDA) or done
  // (CPU). Returns when the agent must look again.
  int64_t mark(int64_t id, uint32_t checkpoint, const CudaDriver* cuda) {
    uint32_t slot = 0;
    uint32_t word = 0;
    {
      Guard guard(mutex_);
      slot = slot_of(id);
      if (slot >= kMostRequests) return kNever;
      const uint32_t position = progress_.advance(slot, checkpoint);
      if (position == 0 || engine_) return kNever;  // of an engine's request, steps are tokens and nothing else
      if (!cuda) {
        const int64_t now = now_ns();
        progress_.sight(slot, position, now, true);
        return settle(now);
      }
      if (!progress_.is_followed()) return kNever;
      word = progress_.word(slot, position);
      progress_.set_marked();
    }
    write_word(*cuda, kSlots + slot, word);  // without the lock: a full stream blocks its host thread
    return kNever;
  }

  // The work of a request or step is enqueued on this thread's current stream (CUDA) or done (CPU). `tokens`: that it
  // made, -1 where that is not told. Returns when the agent must look again: at once (0) for the completion.
  int64_t end(int64_t id, const CudaDriver* cuda, int64_t tokens = -1) {
    const auto slot = static_cast<uint32_t>(id & 0xffff);
    if (id < 0 || slot >= kSlots) return kNever;
    uint64_t queue = static_cast<uint64_t>(pthread_self());
    const bool written = cuda && write_word(*cuda, slot, 1, &queue);
    Guard guard(mutex_);
    if (slot_of(id) != slot) return kNever;
    Request& r = requests_[slot];
    r.ended = true;
    r.queue = queue;
    r.tells_tokens = tokens >= 0 || r.first_token_ns;
    r.tokens = tokens >= 0 ? static_cast<uint32_t>(std::min<int64_t>(tokens, UINT32_MAX)) : progress_.steps(slot);
    if (written) {
      ending_.push_back(slot);
      return 0;
    }
    const int64_t now = now_ns();
    complete(slot, now);
    return settle(now);
  }

  template <typename F>
  void with_progress(F&& change) {
    Guard guard(mutex_);
    change(progress_);
  }

  // One look by the agent. Returns when it must look again (kNever: only for its heartbeat).
  int64_t watch(int64_t now, bool* polling) {
    Guard guard(mutex_);
    row_.heartbeat_ns.store(static_cast<uint64_t>(now), std::memory_order_relaxed);
    see_completions(now);
    *polling = *polling || !ending_.empty();
    const int64_t next = settle(now);
    if (work_.empty()) return next;
    publish(now);
    return std::min(next, now + kBooksNs);
  }

  void detach() {
    Guard guard(mutex_);
    const int64_t now = now_ns();
    busy_.pass(now);
    detached_ = true;
    progress_.publish_none();
    hold_.set(false, now);
  }

 private:
  static constexpr uint32_t kMostToSearch = 64;
  static constexpr uint32_t kMostQueued = 1u << 30;
  static constexpr int64_t kBooksNs = 10'000'000;  // between two entries of busy time; the daemon looks every 50 ms
  static constexpr int64_t kOthersNs = 1'000'000;  // nobody tells this job of the requests of others

  int64_t id_of(uint32_t slot) const { return int64_t{progress_.tag(slot)} << 16 | slot; }

  // The slot of an open request or step that has not ended; kSlots: it is not one, or no longer.
  uint32_t slot_of(int64_t id) const {
    const auto slot = static_cast<uint32_t>(id & 0xffff);
    // Once detached, the row may be another job's.
    if (id < 0 || slot >= kSlots || detached_ || requests_[slot].ended || id_of(slot) != id) return kSlots;
    return slot;
  }

  uint32_t open(std::vector<uint32_t>& free, WorkKind kind, int64_t now) {
    const uint32_t slot = free.back();
    free.pop_back();
    requests_[slot] = Request{};
    requests_[slot].arrival_ns = requests_[slot].begin_ns = now;
    requests_[slot].thread = pthread_self();
    progress_.start(slot, kind, now);
    return slot;
  }

  // From the first step on, requests that are open are no work any more.
  void become_engine() {
    if (engine_) return;
    engine_ = true;
    told_.swap(work_);
    holders_ = 0;
    row_.engine.store(1, std::memory_order_relaxed);
    progress_.publish_none();
    progress_.publish_alone(engine_);
  }

  // By when the open requests need a step: a prefill the first tokens that are promised, a decode step the next ones.
  int64_t step_due_ns(WorkKind kind) const {
    int64_t due = kNoDeadline;
    for (const uint32_t slot : told_) {
      const Request& r = requests_[slot];
      if (r.ended) continue;
      if (kind == kPrefill && r.slo.ttft_ns && !r.first_token_ns) due = std::min(due, r.arrival_ns + r.slo.ttft_ns);
      if (kind == kDecode && r.slo.tpot_ns && r.first_token_ns) {
        due = std::min(due, std::max(r.first_token_ns, books_.last_decode_ns()) + r.slo.tpot_ns);
      }
    }
    return due;
  }

  // False when the stream cannot tell: it is being captured, or the driver fails. `*queue`: which stream it is.
  bool write_word(const CudaDriver& cuda, uint64_t index, uint32_t value, uint64_t* queue = nullptr) const {
    const CudaDriver::InContext context(cuda, cuda_index_);
    const CudaStream stream = cuda.current_stream(cuda_index_);
    if (queue) *queue = reinterpret_cast<uint64_t>(stream);
    const uint64_t address = words_device_ + index * sizeof(uint32_t);
    return !cuda.capture_id(stream) && cuda.write_value(stream, address, value, 0) == 0;
  }

  // For people, and for the other services of the device: the work that is due first.
  void publish(int64_t now) {
    const Request* first = nullptr;
    for (const uint32_t slot : work_) {
      const Request& r = requests_[slot];
      if (!first || r.due_ns < first->due_ns) first = &r;
    }
    const auto slot = static_cast<uint32_t>(first - requests_.data());
    progress_.publish(slot, first->begin_ns, now, hold_.undisturbed_since_ns());
  }

  void count_open_requests() {
    const size_t count = engine_ ? told_.size() : work_.size();
    row_.open_requests.store(static_cast<uint32_t>(count), std::memory_order_relaxed);
  }

  // In the order in which they ended: where the work of one began depends on the one before. Marks come first: nothing
  // is learnt from those of a request that is over.
  void see_completions(int64_t now) {
    progress_.look(work_, now);
    size_t kept = 0;
    for (const uint32_t slot : ending_) {
      if (words_[slot].load(std::memory_order_acquire) == 0) {
        ending_[kept++] = slot;
        continue;
      }
      words_[slot].store(0, std::memory_order_relaxed);
      complete(slot, now);
    }
    ending_.resize(kept);
  }

  void complete(uint32_t slot, int64_t now) {
    const Request& r = requests_[slot];
    int64_t alone_done_ns = -1;
    if (std::erase(work_, slot) > 0) {
      const Books::GateTimes gate{hold_.undisturbed_since_ns(), busy_.open_since_ns()};
      alone_done_ns = books_.book_work(slot, r, now, gate, engine_);
      holders_ -= r.holds;
      if (work_.empty()) progress_.publish_none();
    } else if (std::erase(told_, slot) == 0) {
      return;
    }
    if (slot < kMostRequests) {
      books_.book_request(r, now, alone_done_ns, engine_);
      count_open_requests();
      free_requests_.push_back(slot);
    } else {
      free_steps_.push_back(slot);
    }
  }

  // Makes the gate what it should be now; returns when that may change without a begin or an end.
  int64_t settle(int64_t now) {
    if (!detached_) {
      hold_.forget_old_plan(now);
      hold_.tell_whether_it_closes();
    }
    busy_.pass(now);
    busy_.set_busy(!work_.empty());
    int64_t next = kNever;
    bool want = !detached_ && wants_closed(now, &next);
    if (const int64_t barred = want ? hold_.barred_until_ns(now) : INT64_MIN; barred != INT64_MIN) {
      want = false;
      next = std::min(next, barred);
    }
    hold_.set(want, now);
    busy_.set_gate(hold_.is_open());
    return next;
  }

  bool wants_closed(int64_t now, int64_t* next) {
    const int64_t max_hold = table_.header().max_hold_ns.load(std::memory_order_relaxed);
    int64_t earliest = kNoDeadline;
    int64_t oldest = kNever;
    for (const uint32_t slot : work_) {
      Request& r = requests_[slot];
      if (!r.holds) continue;
      if (now - r.begin_ns > max_hold) {
        r.holds = false;
        --holders_;
        row_.requests_overdue.fetch_add(1, std::memory_order_relaxed);
        continue;
      }
      earliest = std::min(earliest, r.due_ns);
      oldest = std::min(oldest, r.begin_ns);
    }
    row_.oldest_deadline_ns.store(earliest, std::memory_order_relaxed);
    if (holders_ == 0) return false;
    *next = oldest + max_hold + 1;
    const int64_t within = progress_.look_within_ns();
    if (within < kNever) *next = std::min(*next, now + within);
    const int64_t slice = row_.slice_ns.load(std::memory_order_relaxed);
    if (slice > 0) {
      const Turn turn = Turn::at(now, busy_.since_ns(), slice);
      *next = std::min(*next, turn.ends_ns);
      return turn.closed;
    }
    const int64_t lead = row_.lead_ns.load(std::memory_order_acquire);
    const bool by_slack = lead > kLeadNever && lead < kLeadAlways;
    const int64_t closes = by_slack ? closes_ns(now, lead, next) : kNever;
    const uint64_t waiting = uint64_t{holders_} + row_.queued.load(std::memory_order_relaxed);
    const uint32_t limit = row_.queue_limit.load(std::memory_order_relaxed);
    if (lead >= kLeadAlways || (limit < UINT32_MAX && waiting > limit) || closes <= now) return true;
    *next = std::min(*next, closes);
    return false;
  }

  // When the first of the open work runs out of slack; now: some has. With a pace, what goes before a request in its
  // queue, or before it on the device, takes its time first.
  int64_t closes_ns(int64_t now, int64_t plan_lead_ns, int64_t* next) {
    const uint32_t inflation = row_.inflation_ppm.load(std::memory_order_relaxed);
    const OtherServices others(table_, row_);
    if (inflation && others.present()) *next = std::min(*next, now + kOthersNs);
    Demand demand(row_.margin_ns.load(std::memory_order_relaxed), inflation);
    int64_t closes = kNever;
    bool first = true;
    for (const uint32_t slot : work_) {
      Request& r = requests_[slot];
      if (!r.holds) continue;
      int64_t lead = plan_lead_ns;
      if (inflation) {
        const int64_t known = progress_.remaining_ns(slot);
        const int64_t remaining = known >= 0 ? known : demand.remaining_of_lead_ns(plan_lead_ns);
        lead = demand.lead_ns(remaining, others.due_before_ns(r.due_ns));
        demand.pass(std::max<int64_t>(0, remaining - (first ? ran_alone_ns(slot, now) : 0)));
        first = false;
      }
      if (r.due_ns == kNoDeadline) continue;
      // For good: what a request gains on its prediction once the gate is closed is no reason to spend it again.
      r.out_of_slack = r.out_of_slack || now >= r.due_ns - lead;
      closes = std::min(closes, r.out_of_slack ? now : r.due_ns - lead);
    }
    return closes;
  }

  // How long the first of the queue has been at its work since it was last sighted, with the gate closed: that is off
  // the wait of those behind it. It itself keeps its lead, and may be longer than predicted.
  int64_t ran_alone_ns(uint32_t slot, int64_t now) const {
    if (!hold_.closed()) return 0;
    const int64_t since = std::max({hold_.closed_since_ns(), progress_.seen_ns(slot), books_.last_done_ns()});
    return std::max<int64_t>(0, now - since);
  }

  TableView table_;
  JobRow& row_;
  const int cuda_index_;
  a32* const words_;
  const uint64_t words_device_;

  Mutex mutex_;
  std::vector<Request> requests_;
  std::vector<uint32_t> free_requests_;
  std::vector<uint32_t> free_steps_;
  std::vector<uint32_t> work_;    // begun, not complete, in the order of begins: requests, or steps of an engine
  std::vector<uint32_t> told_;    // open requests of an engine
  std::vector<uint32_t> ending_;  // end enqueued, completion word not seen
  uint32_t holders_ = 0;          // of the work: may hold the gate
  bool engine_ = false;
  bool detached_ = false;
  Hold hold_;
  BusyTime busy_;
  JobProgress progress_;
  Books books_;
};

}  // namespace herald
