    // Statements: start the loads of `squares`, before the product.
#for s in 0..SQUARES
    let square$s = squares_of($su * TEAM + lane);
#endfor
