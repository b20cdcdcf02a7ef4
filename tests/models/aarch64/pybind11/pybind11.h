// Stand-in for the part of pybind11 that the bindings of csrc/cpu use, without Python: functions are called by their
// names with values that emulator.py sends. It shadows the real one: the bindings compile for the driver unchanged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace pybind11 {

// A value of Python. An address is one that the driver has translated to its own memory.
struct Value {
  enum class Kind { none, integer, real, text, list, address } kind = Kind::none;
  std::int64_t integer = 0;
  double real = 0;
  std::string text;
  std::vector<Value> list;
  std::uintptr_t address = 0;
};

inline const Value& expect(const Value& value, Value::Kind kind) {
  if (value.kind != kind) throw std::logic_error("a value of another type than the parameter's");
  return value;
}

template <class T>
struct Convert;

template <>
struct Convert<std::int64_t> {
  static std::int64_t from(const Value& value) { return expect(value, Value::Kind::integer).integer; }
};
template <>
struct Convert<int> {
  static int from(const Value& value) { return static_cast<int>(Convert<std::int64_t>::from(value)); }
};
template <>
struct Convert<bool> {
  static bool from(const Value& value) { return Convert<std::int64_t>::from(value) != 0; }
};
template <>
struct Convert<double> {
  static double from(const Value& value) {
    if (value.kind == Value::Kind::integer) return static_cast<double>(value.integer);
    return expect(value, Value::Kind::real).real;
  }
};
template <>
struct Convert<std::string> {
  static std::string from(const Value& value) { return expect(value, Value::Kind::text).text; }
};
template <>
struct Convert<std::uintptr_t> {
  static std::uintptr_t from(const Value& value) {
    if (value.kind == Value::Kind::integer && value.integer == 0) return 0;  // of a tensor without elements
    if (value.kind != Value::Kind::address) throw std::logic_error("an address that no tensor has");
    return value.address;
  }
};
template <class T>
struct Convert<std::optional<T>> {
  static std::optional<T> from(const Value& value) {
    if (value.kind == Value::Kind::none) return std::nullopt;
    return Convert<T>::from(value);
  }
};
template <class T>
struct Convert<std::vector<T>> {
  static std::vector<T> from(const Value& value) {
    std::vector<T> converted;
    for (const Value& item : expect(value, Value::Kind::list).list) converted.push_back(Convert<T>::from(item));
    return converted;
  }
};
template <class... T>
struct Convert<std::tuple<T...>> {
  template <std::size_t... I>
  static std::tuple<T...> each(const std::vector<Value>& items, std::index_sequence<I...>) {
    return {Convert<T>::from(items[I])...};
  }
  static std::tuple<T...> from(const Value& value) {
    const std::vector<Value>& items = expect(value, Value::Kind::list).list;
    if (items.size() != sizeof...(T)) throw std::logic_error("a tuple of another length");
    return each(items, std::index_sequence_for<T...>{});
  }
};

struct arg {
  const char* name;
};
struct kw_only {};

namespace literals {
inline arg operator""_a(const char* name, std::size_t) { return {name}; }
}  // namespace literals

class gil_scoped_release {
 public:
  gil_scoped_release() {}
  ~gil_scoped_release() {}
};

using Keywords = std::map<std::string, Value>;

// The functions of the families by their names.
class module_ {
 public:
  using Function = std::function<void(std::vector<Value>, const Keywords&)>;

  template <class... Parameters, class... Extras>
  void def(const char* name, void (*function)(Parameters...), const Extras&... extras) {
    std::vector<std::string> names;
    (note(names, extras), ...);
    if (names.size() != sizeof...(Parameters)) throw std::logic_error(name + std::string(": a parameter has no name"));
    functions_[name] = [=](std::vector<Value> values, const Keywords& keywords) {
      for (std::size_t i = values.size(); i < names.size(); ++i) values.push_back(keywords.at(names[i]));
      if (values.size() != names.size()) throw std::logic_error("more values than parameters");
      call(function, values, std::index_sequence_for<Parameters...>{});
    };
  }

  const Function& operator[](const std::string& name) const { return functions_.at(name); }

 private:
  static void note(std::vector<std::string>& names, const arg& extra) { names.push_back(extra.name); }
  template <class Other>
  static void note(std::vector<std::string>&, const Other&) {}

  template <class... Parameters, std::size_t... I>
  static void call(void (*function)(Parameters...), const std::vector<Value>& values, std::index_sequence<I...>) {
    function(Convert<std::decay_t<Parameters>>::from(values[I])...);
  }

  std::map<std::string, Function> functions_;
};

}  // namespace pybind11
