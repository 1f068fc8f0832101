// From an op event to its signature: name, shapes, dtypes, memory format. Hot path: about 50 ns for a few tensors.
#pragma once

#include <ATen/record_function.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace herald {

// An op's name, interned. Names without a dispatcher namespace are autograd nodes and profiler ranges; a fixed list of
// ops only ever changes metadata or allocates; torch knows which ops are made of others (wrappers, told once by Python).
// None of them has device time of its own, so they are decided by name, without a look at what they work on.
struct OpName {
  std::string text;
  uint64_t hash;
  bool device_op;
  bool gated_inside;  // the replay of a graph that was captured with waits in it (herald.hooks.launches)
  bool region;        // of compiled code, every kernel of which is announced on a GPU: it has no device time of its own
};

inline uint64_t mix(uint64_t h, uint64_t v) {  // FNV-1a over 64-bit words, with a final shift to spread low bits
  h = (h ^ v) * 0x100000001b3ull;
  return h ^ (h >> 29);
}

class OpNames {
 public:
  static constexpr size_t kMost = 1 << 16;
  static constexpr char kGatedReplay[] = "cuda_graph::gated_replay";
  static constexpr char kRegion[] = "compiled::region_";

  const OpName* intern(const char* text) {
    std::lock_guard<std::mutex> guard(mutex_);
    const auto found = names_.find(text);
    if (found != names_.end()) return found->second.get();
    if (names_.size() >= kMost) return &overflow_;
    const bool device_op = is_device_op(text) && !wrappers_.count(text);
    const bool gated_inside = std::strncmp(text, kGatedReplay, sizeof kGatedReplay - 1) == 0;
    const bool region = std::strncmp(text, kRegion, sizeof kRegion - 1) == 0;
    auto name = std::make_unique<OpName>(OpName{text, hash(text), device_op, gated_inside, region});
    return names_.emplace(text, std::move(name)).first->second.get();
  }

  // Before the first op of that name.
  void add_wrapper(const char* text) {
    std::lock_guard<std::mutex> guard(mutex_);
    wrappers_.insert(text);
  }

  // For a forked child: the lock may be held by a thread that it does not have, what it guards is whole enough to read.
  std::unique_ptr<OpNames> successor() const {
    auto names = std::make_unique<OpNames>();
    names->wrappers_ = wrappers_;
    return names;
  }

 private:
  static uint64_t hash(const char* text) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (; *text; ++text) h = mix(h, static_cast<unsigned char>(*text));
    return h;
  }

  static bool is_device_op(const char* text) {
    if (!std::strstr(text, "::") || std::strncmp(text, "autograd::", 10) == 0) return false;
    if (std::strncmp(text, "aten::", 6) != 0) return true;
    static const char* const kMetadata[] = {
        "alias", "as_strided", "chunk", "detach", "detach_", "diagonal", "empty", "empty_like", "empty_strided",
        "expand", "expand_as", "flatten", "is_nonzero", "lift_fresh", "movedim", "narrow", "new_empty",
        "new_empty_strided", "numpy_T", "permute", "requires_grad_", "reshape", "resize_", "resolve_conj",
        "resolve_neg", "result_type", "select", "set_", "size", "slice", "split", "split_with_sizes", "squeeze",
        "squeeze_", "stride", "swapaxes", "swapdims", "t", "t_", "transpose", "transpose_", "unbind", "unflatten",
        "unfold", "unsafe_chunk", "unsafe_split", "unsqueeze", "unsqueeze_", "view", "view_as", "_reshape_alias",
        "_unsafe_view"};
    for (const char* name : kMetadata) {
      if (std::strcmp(text + 6, name) == 0) return false;
    }
    return true;
  }

  std::mutex mutex_;
  std::unordered_map<std::string, std::unique_ptr<OpName>> names_;
  std::unordered_set<std::string> wrappers_;
  const OpName overflow_{"(too many names)", 0, false, false, false};
};

// What one event works on.
struct Operands {
  uint64_t key = 0;     // never 0 once read
  uint64_t numel = 0;   // elements of all tensor inputs
  int device_index = -1;  // of the first input on the job's kind of device; -1: none, not an op of ours
};

inline bool plain(const at::Tensor& t) {
  // Nested, sparse and symbolic tensors have no sizes to read here; they count by dtype alone.
  return t.layout() == c10::kStrided && !t.unsafeGetTensorImpl()->has_symbolic_sizes_strides() && !t.is_nested();
}

class SignatureReader {
 public:
  explicit SignatureReader(c10::DeviceType device) : device_(device) {}

  Operands read(const OpName& name, c10::ArrayRef<const c10::IValue> inputs) {
    out_.key = name.hash;
    for (const c10::IValue& input : inputs) {
      if (input.isTensor()) {
        add(input.toTensor());
      } else if (input.isList()) {
        add_list(input.toListRef());
      }
    }
    if (out_.key == 0) out_.key = 1;
    return out_;
  }

 private:
  static constexpr size_t kMostOfList = 16;  // a foreach op is told by its length and first tensors

  void add_list(c10::ArrayRef<c10::IValue> items) {
    if (items.empty() || !items[0].isTensor()) return;
    out_.key = mix(out_.key, items.size());
    for (size_t i = 0; i < items.size() && i < kMostOfList; ++i) {
      if (items[i].isTensor()) add(items[i].toTensor());
    }
  }

  void add(const at::Tensor& t) {
    // A tensor subclass answers in Python, and the ops that it is made of come by here, too.
    if (!t.defined() || t.unsafeGetTensorImpl()->is_python_dispatch()) return;
    uint64_t h = mix(out_.key, static_cast<uint64_t>(t.scalar_type()) + 1);
    const c10::Device device = t.device();
    if (device.type() == device_ && out_.device_index < 0) out_.device_index = std::max<int>(0, device.index());
    if (plain(t)) {
      for (const int64_t size : t.sizes()) h = mix(h, static_cast<uint64_t>(size) + 0x9e3779b9);
      // Memory format: whether the innermost dimension is last, which is what kernels choose by.
      if (t.dim() >= 4) h = mix(h, t.strides()[1] == 1 ? 2 : 1);
      out_.numel += static_cast<uint64_t>(t.numel());
    }
    out_.key = h;
  }

  const c10::DeviceType device_;
  Operands out_;
};

// The readable form of a signature: "aten::addmm(Float[128], Float[32, 784], Float[784, 128])".
inline std::string describe(const OpName& name, c10::ArrayRef<const c10::IValue> inputs) {
  std::string out = name.text + "(";
  const auto add = [&out](const at::Tensor& t) {
    if (out.back() != '(') out += ", ";
    const bool readable = t.defined() && !t.unsafeGetTensorImpl()->is_python_dispatch();
    out += readable ? c10::toString(t.scalar_type()) : "None";
    if (!readable || !plain(t)) return;
    out += '[';
    for (int64_t i = 0; i < t.dim(); ++i) out += (i ? ", " : "") + std::to_string(t.sizes()[i]);
    out += t.dim() >= 4 && t.strides()[1] == 1 ? "; channels_last]" : "]";
  };
  for (const c10::IValue& input : inputs) {
    if (input.isTensor()) {
      add(input.toTensor());
    } else if (input.isList() && !input.toListRef().empty() && input.toListRef()[0].isTensor()) {
      add(input.toListRef()[0].toTensor());
      out += " x" + std::to_string(input.toListRef().size());
    }
  }
  return out + ")";
}

}  // namespace herald
