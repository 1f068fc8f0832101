// The high-priority side: open requests of one job, and when they close and open the gate.
//
// begin() and end() are called by serving threads, watch() by the process's agent. Completion on CUDA is seen through
// words that the requests' own streams write: no CUDA call, no GIL, any number of threads, streams and overlaps.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda_driver.hpp"
#include "mutex.hpp"
#include "table.hpp"

namespace herald {

class HighJob {
 public:
  static constexpr uint32_t kMostRequests = 4096;
  static constexpr int64_t kNever = INT64_MAX;

  // `words`: kMostRequests zeroed 32-bit words, mapped for CUDA at `words_device`; null on CPU.
  HighJob(TableView table, uint32_t row, int cuda_index, a32* words, uint64_t words_device)
      : table_(table), row_(table.row(row)), cuda_index_(cuda_index), words_(words), words_device_(words_device) {
    requests_.resize(kMostRequests);
    free_.reserve(kMostRequests);
    for (uint32_t i = kMostRequests; i-- > 0;) free_.push_back(i);
  }

  const TableView& table() const { return table_; }
  int cuda_index() const { return cuda_index_; }

  // Slot of the new request, or -1 when kMostRequests are open (it then runs untracked: inference never waits).
  // `*alarm_ns`: when the agent must look again for the gate to close in time, kNever if it need not.
  int64_t begin(int64_t arrival_ns, int64_t slo_ns, int64_t* alarm_ns) {
    Guard guard(mutex_);
    *alarm_ns = kNever;
    if (detached_ || free_.empty()) return -1;
    const int64_t now = now_ns();
    const uint32_t slot = free_.back();
    free_.pop_back();
    requests_[slot] = {arrival_ns ? arrival_ns : now, now, slo_ns > 0 ? slo_ns : 0, true};
    open_.push_back(slot);
    ++holders_;
    row_.requests_begun.fetch_add(1, std::memory_order_relaxed);
    row_.open_requests.store(static_cast<uint32_t>(open_.size()), std::memory_order_relaxed);
    *alarm_ns = settle(now);
    return slot;
  }

  // The request's work is enqueued on this thread's current stream (CUDA) or done (CPU). True when the agent must watch for completion.
  bool end(int64_t slot, const CudaDriver* cuda) {
    if (slot < 0 || slot >= kMostRequests) return false;
    const bool written = cuda && write_completion(*cuda, static_cast<uint64_t>(slot));
    Guard guard(mutex_);
    if (detached_) return false;  // the row may be another job's by now
    if (written) {
      ending_.push_back(static_cast<uint32_t>(slot));
      return true;
    }
    const int64_t now = now_ns();
    complete(static_cast<uint32_t>(slot), now);
    settle(now);
    return false;
  }

  // One look by the agent. Returns when it must look again (kNever: only for its heartbeat).
  int64_t watch(int64_t now, bool* polling) {
    Guard guard(mutex_);
    row_.heartbeat_ns.store(static_cast<uint64_t>(now), std::memory_order_relaxed);
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
    return settle(now);
  }

  void detach() {
    Guard guard(mutex_);
    detached_ = true;
    if (closed_) open_gate(now_ns());
  }

 private:
  struct Request {
    int64_t arrival_ns;
    int64_t begin_ns;
    int64_t slo_ns;
    bool holds;  // false once it overran max_hold: it lost the gate
    int64_t deadline_ns() const { return slo_ns ? arrival_ns + slo_ns : kNoDeadline; }
  };

  // False when the stream cannot tell (it is being captured, or the driver fails): then the request is over now.
  bool write_completion(const CudaDriver& cuda, uint64_t slot) const {
    const CudaDriver::InContext context(cuda, cuda_index_);
    const CudaStream stream = cuda.current_stream(cuda_index_);
    return !cuda.capture_id(stream) && cuda.write_value(stream, words_device_ + slot * sizeof(uint32_t), 1, 0) == 0;
  }

  static bool remove(std::vector<uint32_t>& slots, uint32_t slot) {
    for (uint32_t& s : slots) {
      if (s != slot) continue;
      s = slots.back();
      slots.pop_back();
      return true;
    }
    return false;
  }

  void complete(uint32_t slot, int64_t now) {
    if (!remove(open_, slot)) return;
    const Request& r = requests_[slot];
    holders_ -= r.holds;
    const int64_t latency = now - r.arrival_ns;
    row_.latency[bucket_of(latency)].fetch_add(1, std::memory_order_relaxed);
    row_.service[bucket_of(now - r.begin_ns)].fetch_add(1, std::memory_order_relaxed);
    row_.requests_done.fetch_add(1, std::memory_order_relaxed);
    if (r.slo_ns) (latency <= r.slo_ns ? row_.slo_met : row_.slo_missed).fetch_add(1, std::memory_order_relaxed);
    row_.open_requests.store(static_cast<uint32_t>(open_.size()), std::memory_order_relaxed);
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
    if (want && (!closed_ || !(table_.gate(row_.device, kClassHeavy).load(std::memory_order_relaxed) >> row_.bit & 1))) {
      close_gate(now);
    } else if (!want && closed_) {
      open_gate(now);
    }
    return next;
  }

  bool wants_closed(int64_t now, int64_t* next) {
    const int64_t lead = row_.lead_ns.load(std::memory_order_acquire);
    const int64_t max_hold = table_.header().max_hold_ns.load(std::memory_order_relaxed);
    int64_t earliest = kNoDeadline;
    int64_t oldest = kNever;
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
    }
    row_.oldest_deadline_ns.store(earliest, std::memory_order_relaxed);
    if (holders_ == 0) return false;
    *next = oldest + max_hold + 1;
    if (lead >= kLeadAlways || holders_ > row_.queue_limit.load(std::memory_order_relaxed)) return true;
    if (lead <= kLeadNever || earliest == kNoDeadline) return false;
    if (now >= earliest - lead) return true;
    *next = std::min(*next, earliest - lead);
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
  int64_t closed_since_ = 0;
};

}  // namespace herald
