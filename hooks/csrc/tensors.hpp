// What a recording keeps of an op's tensors and arguments: storages for the data-flow graph, shapes for FLOPs. Off the
// hot path: used for one iteration in detail.
#pragma once

#include <ATen/record_function.h>

#include <string>
#include <vector>

#include "recorder.hpp"
#include "signature.hpp"

namespace herald {

// Keeps storages' addresses from being used again, not their memory: an address then names one storage.
class StorageNames {
 public:
  uint64_t name(const at::Tensor& t) {
    const auto& storage = t.storage().getWeakStorageImpl();
    Guard guard(mutex_);
    const auto address = reinterpret_cast<uint64_t>(t.storage().unsafeGetStorageImpl());
    held_.emplace(address, storage);
    return address;
  }

 private:
  Mutex mutex_;
  std::unordered_map<uint64_t, c10::weak_intrusive_ptr<c10::StorageImpl>> held_;
};

inline bool has_memory(const at::Tensor& t) {
  return t.defined() && !t.unsafeGetTensorImpl()->is_python_dispatch() && t.has_storage() && plain(t);
}

// `argument`: its place among the inputs; -1: an output.
inline void add_tensors(const c10::IValue& value, int32_t argument, StorageNames& names, std::vector<RecordedTensor>* out) {
  if (value.isTensor()) {
    const at::Tensor& t = value.toTensor();
    if (has_memory(t)) out->push_back({names.name(t), t.nbytes(), t.storage().nbytes(), argument, 0});
  } else if (value.isList()) {
    for (const c10::IValue& item : value.toListRef()) add_tensors(item, argument, names, out);
  }
}

inline std::vector<RecordedTensor> read_inputs(const at::RecordFunction& fn, StorageNames& names) {
  std::vector<RecordedTensor> tensors;
  const auto inputs = fn.inputs();
  for (size_t i = 0; i < inputs.size(); ++i) add_tensors(inputs[i], static_cast<int32_t>(i), names, &tensors);
  return tensors;
}

inline void append_json(const c10::IValue& value, std::string* out) {
  if (value.isTensor()) {
    const at::Tensor& t = value.toTensor();
    if (!t.defined() || t.unsafeGetTensorImpl()->is_python_dispatch() || !plain(t)) {
      *out += "null";
      return;
    }
    *out += "{\"shape\":[";
    for (int64_t i = 0; i < t.dim(); ++i) *out += (i ? "," : "") + std::to_string(t.sizes()[i]);
    *out += std::string("],\"dtype\":\"") + c10::toString(t.scalar_type()) + "\",\"bytes\":" + std::to_string(t.nbytes()) + "}";
  } else if (value.isBool()) {
    *out += value.toBool() ? "true" : "false";
  } else if (value.isInt()) {
    *out += std::to_string(value.toInt());
  } else if (value.isList()) {
    *out += '[';
    bool first = true;
    for (const c10::IValue& item : value.toListRef()) {
      if (!first) *out += ',';
      first = false;
      append_json(item, out);
    }
    *out += ']';
  } else {
    *out += "null";  // floats, strings and generators do not enter a FLOP formula
  }
}

template <typename Values>
std::string to_json(const Values& values) {
  std::string out = "[";
  for (const c10::IValue& value : values) {
    if (out.size() > 1) out += ',';
    append_json(value, &out);
  }
  return out + "]";
}

}  // namespace herald
