#include "parallel.h"

#ifdef __linux__
#include <pthread.h>

#include <fstream>
#include <sstream>
#include <string>
#endif

namespace deepclust {
namespace {

bool forked = false;

#ifdef __linux__
// The kernel's own record, for a library that is loaded only after the fork.
bool loaded_in_forked_child() {
    constexpr unsigned kForkedWithoutExec = 0x40;  // PF_FORKNOEXEC
    std::ifstream file("/proc/self/stat");
    std::string line, field;
    std::getline(file, line);
    // pid (name) state ppid pgrp session tty tpgid flags ...; the name may hold anything.
    std::istringstream after_name(line.substr(line.rfind(')') + 1));
    unsigned flags = 0;
    for (int skipped = 0; skipped < 6; ++skipped) after_name >> field;
    after_name >> flags;
    return flags & kForkedWithoutExec;
}

[[maybe_unused]] const bool watched = [] {
    forked = loaded_in_forked_child();
    return pthread_atfork(nullptr, nullptr, [] { forked = true; }) == 0;
}();
#endif

}  // namespace

bool is_forked() {
    return forked;
}

}  // namespace deepclust
