// Recipe text: what is accepted has a canonical form.
#include "compressor/recipe.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto recipe = moepack::ParseRecipe(std::string_view(reinterpret_cast<const char*>(data), size), "recipe.yaml");
  if (recipe.ok() && recipe->Canonical().empty()) __builtin_trap();
  return 0;
}
