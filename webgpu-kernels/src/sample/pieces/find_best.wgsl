// The best key of a row and its column, from those of the row's chunks.
#import sample/rows
#import sample/reduce_best

@group(0) @binding(2) var<storage, read> keys: array<u32>;                 // [rows, cols]
@group(0) @binding(3) var<storage, read> best: array<vec2<u32>>;           // [rows, chunks] key, column

fn find_best(lane: u32, row: u32) -> vec2<u32> {
    var mine = vec2<u32>(0u, params.cols);
    if (lane < params.chunks) {
        mine = best[chunk_index(row, lane)];
    }
    return reduce_best(lane, mine.x, mine.y);
}
