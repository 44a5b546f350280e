    // Statements: copy x to workgroup memory, in an order in which neighboring lanes read neighboring quads.
    for (var quad = invocation.lane; quad < QUADS * X_BLOCKS; quad += WORKGROUP) {
        x_tile[quad % QUADS * X_BLOCKS + quad / QUADS] = spread(load_x(0u, quad));
    }
    workgroupBarrier();
