// Times an op and all that it calls, to learn self times: wall time on CPU, pairs of events on CUDA.
//
// One per thread. CUDA results are read later, when the last event of a tree has passed: no synchronisation.
#pragma once

#include <deque>
#include <vector>

#include "costs.hpp"
#include "cuda_driver.hpp"
#include "table.hpp"

namespace herald {

class OpTimer {
 public:
  bool inside() const { return !stack_.empty(); }

  void begin(const void* event, Signature& s, const CudaDriver* cuda, int device) {
    if (stack_.size() >= kDeepest) return;
    if (stack_.empty()) {
      if (cuda) {
        read_finished(*cuda);
        const CudaDriver::InContext context(*cuda, device);
        if (finished_.size() >= kMostWaiting || cuda->capture_id(cuda->current_stream(device))) return;
      }
      tree_.clear();
      cuda_ = cuda;
    }
    Node node{&s, stack_.empty() ? -1 : stack_.back().node, device, 0, 0, nullptr, nullptr};
    if (cuda_) {
      const CudaDriver::InContext context(*cuda_, device);
      node.start = take_event();
      node.stop = take_event();
      cuda_->event_record(node.start, cuda_->current_stream(device));
    } else {
      node.begin_ns = now_ns();
    }
    tree_.push_back(node);
    stack_.push_back({event, static_cast<int>(tree_.size()) - 1});
  }

  void end(const void* event, Costs& costs) {
    if (stack_.back().event != event) return;  // not the innermost timed event
    Node& node = tree_[static_cast<size_t>(stack_.back().node)];
    stack_.pop_back();
    if (cuda_) {
      const CudaDriver::InContext context(*cuda_, node.device);
      cuda_->event_record(node.stop, cuda_->current_stream(node.device));
    } else {
      node.total_ns = now_ns() - node.begin_ns;
    }
    if (!stack_.empty()) return;
    if (cuda_) {
      finished_.push_back({std::move(tree_), &costs});
    } else {
      learn(tree_, costs, 0);
    }
    tree_.clear();
  }

 private:
  static constexpr size_t kDeepest = 64;
  static constexpr size_t kMostWaiting = 1024;  // trees whose events have not passed; beyond, ops go untimed
  // Two adjacent event records read about this far apart with nothing between them (H200, driver 580).
  static constexpr int64_t kEmptyPairNs = 1'500;

  struct Node {
    Signature* signature;
    int parent;
    int device;
    int64_t begin_ns;
    int64_t total_ns;
    CudaEvent start;
    CudaEvent stop;
  };
  struct Open {
    const void* event;
    int node;
  };
  struct Tree {
    std::vector<Node> nodes;
    Costs* costs;
  };

  static void learn(const std::vector<Node>& nodes, Costs& costs, int64_t overhead_ns) {
    std::vector<int64_t> self(nodes.size());
    for (size_t i = 0; i < nodes.size(); ++i) {
      self[i] += nodes[i].total_ns - overhead_ns;
      if (nodes[i].parent >= 0) self[static_cast<size_t>(nodes[i].parent)] -= nodes[i].total_ns;
    }
    for (size_t i = 0; i < nodes.size(); ++i) costs.sample(*nodes[i].signature, self[i]);
  }

  void read_finished(const CudaDriver& cuda) {
    CudaDriver::RelaxedCapture relaxed(cuda);
    while (!finished_.empty()) {
      Tree& tree = finished_.front();
      if (cuda.event_query(tree.nodes.front().stop) != 0) return;  // the root's end is the last
      bool timed = true;
      for (Node& node : tree.nodes) {
        float ms = 0;
        timed = timed && cuda.event_elapsed(&ms, node.start, node.stop) == 0;
        node.total_ns = static_cast<int64_t>(ms * 1e6);
        spare_.push_back(node.start);
        spare_.push_back(node.stop);
      }
      if (timed) learn(tree.nodes, *tree.costs, kEmptyPairNs);
      finished_.pop_front();
    }
  }

  CudaEvent take_event() {
    if (spare_.empty()) {
      CudaDriver::RelaxedCapture relaxed(*cuda_);
      CudaEvent event = nullptr;
      cuda_->event_create(&event, 0);
      return event;
    }
    CudaEvent event = spare_.back();
    spare_.pop_back();
    return event;
  }

  const CudaDriver* cuda_ = nullptr;
  std::vector<Node> tree_;
  std::vector<Open> stack_;
  std::deque<Tree> finished_;
  std::vector<CudaEvent> spare_;
};

}  // namespace herald
