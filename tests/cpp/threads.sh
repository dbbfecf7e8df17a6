#!/bin/sh
# Compiles tests/cpp/threads.cpp and the kernels under thread sanitizer into folder $1, and runs it.
set -e
mkdir -p "$1/threads"
flags="-std=c++17 -O1 -g -fsanitize=thread -Wno-psabi -mavx2 -mfma -DDEEPCLUST_ISA=avx2 -Icsrc"
[ "$(uname -m)" = x86_64 ] || flags=$(echo "$flags" | sed 's/-mavx2 -mfma//; s/=avx2/=baseline/')
sources="$(grep -l "^namespace deepclust::DEEPCLUST_ISA" csrc/*.cpp) csrc/memory.cpp tests/cpp/threads.cpp"
printf '%s\n' $sources |
    xargs -P "$(nproc)" -I{} sh -c 'g++ $1 -c "$2" -o "$3/$(basename "$2" .cpp).o"' - "$flags" {} "$1/threads"
g++ -fsanitize=thread "$1"/threads/*.o -o "$1/threads/run" -pthread
TSAN_OPTIONS=halt_on_error=1 "$1/threads/run"
