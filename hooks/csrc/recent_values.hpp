// A histogram that forgets: quantiles of the last few hundred values, in fixed memory, an add in a few ns.
//
// Buckets are 1/32 wide (values below 64 are exact). Every value weighs kWeight; when kMost of them are in, all weights
// are halved, so that older ones fade over several halvings. Not for several threads at once.
#pragma once

#include <cstdint>
#include <cstring>

namespace herald {

class RecentValues {
 public:
  static constexpr uint32_t kMost = 512;

  void add(uint64_t value) {
    if (weight_ >= kMost * kWeight) fade();
    const uint32_t i = index_of(value);
    buckets_[i] = static_cast<uint16_t>(buckets_[i] + kWeight);
    groups_[i / kFine] += kWeight;
    weight_ += kWeight;
  }

  void clear() { *this = RecentValues(); }

  // How many values there are, faded ones in part.
  uint32_t count() const { return weight_ / kWeight; }

  // Of the values in higher buckets than that of `above` (-1: all), the one that a share of `ppm` of them does not
  // exceed: the upper edge of its bucket, or the middle. -1: there are none.
  int64_t quantile(uint32_t ppm, int64_t above = -1, bool upper_edge = false) const {
    const uint32_t first = above < 0 ? 0 : index_of(static_cast<uint64_t>(above)) + 1;
    const uint64_t below = weight_below(first);
    if (below >= weight_) return -1;
    const uint64_t wanted = ((weight_ - below) * uint64_t{ppm} + 999'999) / 1'000'000;
    uint64_t seen = 0;
    const uint64_t target = below + (wanted > 0 ? wanted : 1);
    uint32_t group = 0;
    while (seen + groups_[group] < target) seen += groups_[group++];
    uint32_t i = group * kFine;
    while (seen + buckets_[i] < target) seen += buckets_[i++];
    const uint64_t low = low_of(i);
    return static_cast<int64_t>(upper_edge ? low_of(i + 1) - 1 : low + (low_of(i + 1) - low - 1) / 2);
  }

 private:
  static constexpr uint32_t kFine = 32;
  static constexpr uint32_t kGroups = 36;  // up to 2^40
  static constexpr uint32_t kBuckets = kGroups * kFine;
  static constexpr uint32_t kWeight = 64;
  static_assert(kMost * kWeight <= UINT16_MAX, "all values may fall into one bucket");

  static uint32_t index_of(uint64_t value) {
    if (value < kFine) return static_cast<uint32_t>(value);
    const uint32_t exponent = 63 - static_cast<uint32_t>(__builtin_clzll(value));  // >= 5
    const uint32_t index = (exponent - 4) * kFine + static_cast<uint32_t>((value >> (exponent - 5)) & (kFine - 1));
    return index < kBuckets ? index : kBuckets - 1;
  }

  static uint64_t low_of(uint32_t i) {
    if (i < kFine) return i;
    return uint64_t{kFine + i % kFine} << (i / kFine - 1);
  }

  uint64_t weight_below(uint32_t end) const {
    uint64_t sum = 0;
    for (uint32_t group = 0; group < end / kFine; ++group) sum += groups_[group];
    for (uint32_t i = end / kFine * kFine; i < end; ++i) sum += buckets_[i];
    return sum;
  }

  void fade() {
    weight_ = 0;
    for (uint32_t group = 0; group < kGroups; ++group) {
      groups_[group] = 0;
      for (uint32_t i = group * kFine; i < (group + 1) * kFine; ++i) groups_[group] += buckets_[i] /= 2;
      weight_ += groups_[group];
    }
  }

  uint16_t buckets_[kBuckets] = {};
  uint32_t groups_[kGroups] = {};
  uint32_t weight_ = 0;
};

}  // namespace herald
