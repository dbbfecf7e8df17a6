# The tests of the Triton kernels in Triton's interpreter, which is slow and has one thread: half of
# them beside the other half. `BIN` is where python is.
set -u
run() {
    "$BIN"/python -m pytest -q -m 'not large' -k triton -p no:cacheprovider "$@"
}
log=$(mktemp)
run tests/test_assign.py tests/test_target_loss.py >"$log" 2>&1 &
run tests/test_frequencies.py tests/test_targets.py tests/test_kmeans_assign.py \
    tests/test_kmeans_update.py tests/test_kmeans_loss.py tests/test_contract.py \
    tests/test_triton.py
second=$?
wait $!
first=$?
cat "$log"
rm -f "$log"
[ $first -eq 0 ] && [ $second -eq 0 ]
