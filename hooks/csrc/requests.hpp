// The high-priority side: open requests of one job, and when they close and open the gate.
//
// begin() and end() are called by serving threads, watch() by the process's agent. Completion on CUDA is seen through
// words that the requests' own streams write: no CUDA call, no GIL, any number of threads, streams and overlaps.
// Progress has words of its own, so that a mark that lands late, on another stream, can never undo a completion.
#pragma once

#include <pthread.h>

#include <cstdint>
#include <vector>

#include "cuda_driver.hpp"
#include "job_progress.hpp"
#include "mutex.hpp"
#include "table.hpp"

namespace herald {

class HighJob {
 public:
  static constexpr uint32_t kMostRequests = 4096;
  static constexpr int64_t kNever = INT64_MAX;

  static constexpr uint32_t kNumWords = 2 * kMostRequests;  // of completion, then of progress

  // `words`: kNumWords zeroed 32-bit words, mapped for CUDA at `words_device`; null on CPU.
  HighJob(TableView table, uint32_t row, int cuda_index, a32* words, uint64_t words_device)
      : table_(table), row_(table.row(row)), cuda_index_(cuda_index), words_(words), words_device_(words_device),
        progress_(row_, words ? words + kMostRequests : nullptr, kMostRequests) {
    requests_.resize(kMostRequests);
    free_.reserve(kMostRequests);
    for (uint32_t i = kMostRequests; i-- > 0;) free_.push_back(i);
  }

  const TableView& table() const { return table_; }
  int cuda_index() const { return cuda_index_; }

  // Id of the new request, or -1 when kMostRequests are open (it then runs untracked: inference never waits).
  // `*alarm_ns`: when the agent must look again for the gate to close in time, kNever if it need not.
  int64_t begin(int64_t arrival_ns, int64_t slo_ns, int64_t* alarm_ns) {
    Guard guard(mutex_);
    *alarm_ns = kNever;
    if (detached_ || free_.empty()) return -1;
    const int64_t now = now_ns();
    const uint32_t slot = free_.back();
    free_.pop_back();
    requests_[slot] = {arrival_ns ? arrival_ns : now, now, slo_ns > 0 ? slo_ns : 0, pthread_self()};
    progress_.start(slot, now);
    open_.push_back(slot);
    ++holders_;
    row_.requests_begun.fetch_add(1, std::memory_order_relaxed);
    row_.open_requests.store(static_cast<uint32_t>(open_.size()), std::memory_order_relaxed);
    *alarm_ns = settle(now);
    return id_of(slot);
  }

  // The request that a forward on this thread works for: the only one that this thread has open, or else the only one
  // of all. -1: that cannot be told (a forward for a batch of them).
  int64_t at_work() {
    Guard guard(mutex_);
    const pthread_t self = pthread_self();
    int64_t own = -1, any = -1;
    uint32_t num_own = 0, num_any = 0;
    if (open_.size() > kMostToSearch) return -1;
    for (const uint32_t slot : open_) {
      const Request& r = requests_[slot];
      if (r.ended) continue;
      any = id_of(slot);
      ++num_any;
      if (!pthread_equal(r.thread, self)) continue;
      own = any;
      ++num_own;
    }
    return num_own == 1 ? own : num_own == 0 && num_any == 1 ? any : -1;
  }

  // The request's work up to a checkpoint, or (0) one more step of it, is enqueued on the current stream (CUDA) or done
  // (CPU). Returns when the agent must look again.
  int64_t mark(int64_t id, uint32_t checkpoint, const CudaDriver* cuda) {
    const auto slot = static_cast<uint32_t>(id & 0xffff);
    if (id < 0 || slot >= kMostRequests) return kNever;
    uint32_t word = 0;
    {
      Guard guard(mutex_);
      if (detached_ || requests_[slot].ended || id_of(slot) != id) return kNever;
      const uint32_t position = progress_.advance(slot, checkpoint);
      if (position == 0) return kNever;
      if (!cuda) {
        const int64_t now = now_ns();
        progress_.sight(slot, position, now, true);
        return settle(now);
      }
      word = progress_.word(slot, position);
      progress_.set_marked();
    }
    write_word(*cuda, kMostRequests + slot, word);  // without the lock: a full stream blocks its host thread
    return kNever;
  }

  // The request's work is enqueued on this thread's current stream (CUDA) or done (CPU). True when the agent must watch
  // for completion.
  bool end(int64_t id, const CudaDriver* cuda) {
    const auto slot = static_cast<uint32_t>(id & 0xffff);
    if (id < 0 || slot >= kMostRequests) return false;
    uint64_t queue = static_cast<uint64_t>(pthread_self());
    const bool written = cuda && write_word(*cuda, slot, 1, &queue);
    Guard guard(mutex_);
    if (detached_) return false;  // the row may be another job's by now
    requests_[slot].ended = true;
    requests_[slot].queue = queue;
    if (written) {
      ending_.push_back(slot);
      return true;
    }
    const int64_t now = now_ns();
    complete(slot, now);
    settle(now);
    return false;
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
    progress_.look(open_, now);
    for (size_t i = 0; i < ending_.size();) {
      const uint32_t slot = ending_[i];
      if (words_[slot].load(std::memory_order_acquire) == 0) {
        ++i;
        continue;
      }
      words_[slot].store(0, std::memory_order_relaxed);
      ending_[i] = ending_.back();
      ending_.pop_back();
      complete(slot, now);
    }
    *polling = *polling || !ending_.empty();
    const int64_t next = settle(now);
    if (!open_.empty()) publish(now);
    return next;
  }

  void detach() {
    Guard guard(mutex_);
    detached_ = true;
    progress_.publish_none();
    if (closed_) open_gate(now_ns());
  }

 private:
  static constexpr uint32_t kMostToSearch = 64;

  struct Request {
    int64_t arrival_ns;
    int64_t begin_ns;
    int64_t slo_ns;
    pthread_t thread;
    uint64_t queue = 0;  // the stream (CUDA) or thread (CPU) that ended it: its work came after that of those before it
    bool ended = false;
    bool holds = true;  // false once it overran max_hold: it lost the gate
    bool out_of_slack = false;
    int64_t deadline_ns() const { return slo_ns ? arrival_ns + slo_ns : kNoDeadline; }
  };

  struct Queue {
    uint64_t queue = 0;
    int64_t done_ns = 0;
  };

  int64_t id_of(uint32_t slot) const { return int64_t{progress_.tag(slot)} << 16 | slot; }

  // False when the stream cannot tell: it is being captured, or the driver fails. `*queue`: which stream it is.
  bool write_word(const CudaDriver& cuda, uint64_t index, uint32_t value, uint64_t* queue = nullptr) const {
    const CudaDriver::InContext context(cuda, cuda_index_);
    const CudaStream stream = cuda.current_stream(cuda_index_);
    if (queue) *queue = reinterpret_cast<uint64_t>(stream);
    const uint64_t address = words_device_ + index * sizeof(uint32_t);
    return !cuda.capture_id(stream) && cuda.write_value(stream, address, value, 0) == 0;
  }

  // For people: the request that is due first.
  void publish(int64_t now) {
    const Request* first = nullptr;
    for (const uint32_t slot : open_) {
      const Request& r = requests_[slot];
      if (!first || r.deadline_ns() < first->deadline_ns()) first = &r;
    }
    const auto slot = static_cast<uint32_t>(first - requests_.data());
    progress_.publish(slot, first->begin_ns, now, undisturbed_since());
  }

  int64_t undisturbed_since() const { return closed_ ? closed_since_ : INT64_MAX; }

  // When the queue last finished a request: the next one's work began there, though it may have been begun before.
  int64_t& last_done(uint64_t queue) {
    Queue* oldest = &queues_[0];
    for (Queue& q : queues_) {
      if (q.queue == queue) return q.done_ns;
      if (q.done_ns < oldest->done_ns) oldest = &q;
    }
    *oldest = {queue, 0};
    return oldest->done_ns;
  }

  void complete(uint32_t slot, int64_t now) {
    if (std::erase(open_, slot) == 0) return;
    const Request& r = requests_[slot];
    int64_t& last_done_ns = last_done(r.queue);
    progress_.finish(slot, std::max(r.begin_ns, last_done_ns), now, undisturbed_since());
    last_done_ns = now;
    holders_ -= r.holds;
    const int64_t latency = now - r.arrival_ns;
    row_.latency[bucket_of(latency)].fetch_add(1, std::memory_order_relaxed);
    row_.service[bucket_of(now - r.begin_ns)].fetch_add(1, std::memory_order_relaxed);
    row_.requests_done.fetch_add(1, std::memory_order_relaxed);
    if (r.slo_ns) (latency <= r.slo_ns ? row_.slo_met : row_.slo_missed).fetch_add(1, std::memory_order_relaxed);
    row_.open_requests.store(static_cast<uint32_t>(open_.size()), std::memory_order_relaxed);
    if (open_.empty()) progress_.publish_none();
    free_.push_back(slot);
  }

  // Makes the gate what it should be now; returns when that may change without a begin or an end.
  int64_t settle(int64_t now) {
    int64_t next = kNever;
    bool want = !detached_ && wants_closed(now, &next);
    if (want && !table_.may_close(row_.device, now)) {
      want = false;
      next = std::min(next, table_.hold(row_.device).breathe_until_ns.load(std::memory_order_relaxed));
    }
    // Set again even if it is ours already: someone may have taken the bit while this process was stopped.
    const uint32_t word = table_.gate(row_.device, kClassHeavy).load(std::memory_order_relaxed);
    if (want && (!closed_ || !(word >> row_.bit & 1))) {
      close_gate(now);
    } else if (!want && closed_) {
      open_gate(now);
    }
    return next;
  }

  bool wants_closed(int64_t now, int64_t* next) {
    const int64_t lead = row_.lead_ns.load(std::memory_order_acquire);
    const bool by_slack = lead > kLeadNever && lead < kLeadAlways;
    const int64_t max_hold = table_.header().max_hold_ns.load(std::memory_order_relaxed);
    int64_t earliest = kNoDeadline;
    int64_t oldest = kNever;
    int64_t closes = kNever;
    bool out_of_slack = false;
    for (const uint32_t slot : open_) {
      Request& r = requests_[slot];
      if (!r.holds) continue;
      if (now - r.begin_ns > max_hold) {
        r.holds = false;
        --holders_;
        row_.requests_overdue.fetch_add(1, std::memory_order_relaxed);
        continue;
      }
      earliest = std::min(earliest, r.deadline_ns());
      oldest = std::min(oldest, r.begin_ns);
      if (!by_slack || !r.slo_ns) continue;
      // For good: what a request gains on its prediction once the gate is closed is no reason to spend it again.
      const int64_t close_at = r.deadline_ns() - progress_.lead_ns(slot, lead);
      r.out_of_slack = r.out_of_slack || now >= close_at;
      out_of_slack = out_of_slack || r.out_of_slack;
      closes = std::min(closes, close_at);
    }
    row_.oldest_deadline_ns.store(earliest, std::memory_order_relaxed);
    if (holders_ == 0) return false;
    *next = oldest + max_hold + 1;
    const int64_t within = progress_.look_within_ns();
    if (within < kNever) *next = std::min(*next, now + within);
    if (lead >= kLeadAlways || holders_ > row_.queue_limit.load(std::memory_order_relaxed)) return true;
    if (!by_slack || out_of_slack) return by_slack;
    *next = std::min(*next, closes);
    return false;
  }

  void close_gate(int64_t now) {
    table_.close_gate(row_.device, row_.bit, now);
    if (closed_) return;
    closed_ = true;
    closed_since_ = now;
    row_.hold_since_ns.store(static_cast<uint64_t>(now), std::memory_order_relaxed);
    row_.closes.fetch_add(1, std::memory_order_relaxed);
  }

  void open_gate(int64_t now) {
    table_.open_gate(row_.device, row_.bit);
    closed_ = false;
    row_.hold_since_ns.store(0, std::memory_order_relaxed);
    row_.held_ns.fetch_add(static_cast<uint64_t>(now - closed_since_), std::memory_order_relaxed);
  }

  TableView table_;
  JobRow& row_;
  const int cuda_index_;
  a32* const words_;
  const uint64_t words_device_;

  Mutex mutex_;
  std::vector<Request> requests_;
  std::vector<uint32_t> free_;
  std::vector<uint32_t> open_;    // begun, not complete
  std::vector<uint32_t> ending_;  // end enqueued, completion word not seen
  uint32_t holders_ = 0;          // open requests that may hold the gate
  bool closed_ = false;
  bool detached_ = false;
  Queue queues_[16];
  int64_t closed_since_ = 0;
  JobProgress progress_;
};

}  // namespace herald
