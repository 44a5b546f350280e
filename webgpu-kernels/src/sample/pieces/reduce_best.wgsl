var<workgroup> shared_keys: array<u32, WORKGROUP>;
var<workgroup> shared_columns: array<u32, WORKGROUP>;

// Returns the largest of the lanes' keys and its lowest column, in every lane.
fn reduce_best(lane: u32, key: u32, column: u32) -> vec2<u32> {
    shared_keys[lane] = key;
    shared_columns[lane] = column;
    workgroupBarrier();
    for (var reach = WORKGROUP / 2u; reach > 0u; reach /= 2u) {
        if (lane < reach) {
            let k = shared_keys[lane + reach];
            let c = shared_columns[lane + reach];
            if (k > shared_keys[lane] || (k == shared_keys[lane] && c < shared_columns[lane])) {
                shared_keys[lane] = k;
                shared_columns[lane] = c;
            }
        }
        workgroupBarrier();
    }
    // A uniform load: control flow may depend on the result.
    return vec2<u32>(workgroupUniformLoad(&shared_keys[0]), workgroupUniformLoad(&shared_columns[0]));
}
