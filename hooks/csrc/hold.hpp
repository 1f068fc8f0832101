// One service's hold on the gate of its device: its bit there, and since when.
#pragma once

#include <algorithm>
#include <cstdint>

#include "table.hpp"

namespace herald {

class Hold {
 public:
  Hold(TableView table, JobRow& row) : table_(table), row_(row) {}

  bool closed() const { return closed_; }
  int64_t closed_since_ns() const { return closed_since_ns_; }

  // The gate of the device, whoever closed it.
  bool is_open() const { return word().load(std::memory_order_relaxed) == 0; }

  // What trainers launched while nothing of theirs waited (before this job came, or under a plan that never closes)
  // runs on behind a closed gate for a while.
  int64_t undisturbed_since_ns() const { return closed_ ? std::max(closed_since_ns_, drained_ns_) : INT64_MAX; }

  // A plan that nobody corrects any more may be wrong by now: without a daemon, the gate closes when a request begins.
  void forget_old_plan(int64_t now) {
    const auto beat = static_cast<int64_t>(table_.header().daemon_heartbeat_ns.load(std::memory_order_relaxed));
    const int64_t slice = row_.slice_ns.load(std::memory_order_relaxed);
    if (beat == 0 || now - beat < kAbandonedNs) return;
    if (slice == 0 && row_.lead_ns.load(std::memory_order_relaxed) >= kLeadAlways) return;
    row_.slice_ns.store(0, std::memory_order_relaxed);
    row_.inflation_ppm.store(0, std::memory_order_relaxed);
    row_.quantile_ppm.store(0, std::memory_order_relaxed);
    row_.margin_ns.store(0, std::memory_order_relaxed);
    row_.queue_limit.store(UINT32_MAX, std::memory_order_relaxed);
    row_.lead_ns.store(kLeadAlways, std::memory_order_release);  // a daemon that is back finds it, and plans anew
  }

  // Where the plan never closes the gate, trainers need not look out for this job: their hooks may rest.
  void tell_whether_it_closes() {
    const bool closes = row_.lead_ns.load(std::memory_order_acquire) > kLeadNever ||
                        row_.queue_limit.load(std::memory_order_relaxed) < UINT32_MAX ||
                        row_.slice_ns.load(std::memory_order_relaxed) > 0;
    if (closes == closes_) return;
    closes_ = closes;
    a32& attached = table_.attached(row_.device);
    if (closes) {
      drained_ns_ = now_ns() + kDrainNs;
      attached.fetch_or(1u << row_.bit, std::memory_order_seq_cst);
    } else {
      attached.fetch_and(~(1u << row_.bit), std::memory_order_seq_cst);
    }
  }

  // INT64_MIN, or when the gate may be closed again where it has just been forced open.
  int64_t barred_until_ns(int64_t now) const {
    if (table_.may_close(row_.device, now)) return INT64_MIN;
    return table_.hold(row_.device).breathe_until_ns.load(std::memory_order_relaxed);
  }

  void set(bool closed, int64_t now) {
    // Closed again even if it is already: someone may have taken the bit while this process was stopped. When, nobody
    // knows: a new hold begins, and what ran meanwhile was not undisturbed.
    if (closed && (!closed_ || !(word().load(std::memory_order_relaxed) >> row_.bit & 1))) {
      close(now);
    } else if (!closed && closed_) {
      open(now);
    }
  }

 private:
  static constexpr int64_t kDrainNs = 100'000'000;

  const a32& word() const { return table_.gate(row_.device, kClassHeavy); }

  void close(int64_t now) {
    table_.close_gate(row_.device, row_.bit, now);
    if (closed_) row_.held_ns.fetch_add(static_cast<uint64_t>(now - closed_since_ns_), std::memory_order_relaxed);
    closed_ = true;
    closed_since_ns_ = now;
    row_.hold_since_ns.store(static_cast<uint64_t>(now), std::memory_order_relaxed);
    row_.closes.fetch_add(1, std::memory_order_relaxed);
  }

  void open(int64_t now) {
    table_.open_gate(row_.device, row_.bit);
    closed_ = false;
    row_.hold_since_ns.store(0, std::memory_order_relaxed);
    row_.held_ns.fetch_add(static_cast<uint64_t>(now - closed_since_ns_), std::memory_order_relaxed);
  }

  const TableView table_;
  JobRow& row_;
  bool closed_ = false;
  bool closes_ = true;  // the plan may close the gate, and the attached word says so
  int64_t closed_since_ns_ = 0;
  int64_t drained_ns_ = 0;  // from then on, behind a closed gate nothing runs
};

}  // namespace herald
