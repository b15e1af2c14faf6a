// How what portions of the positions make is put together. All kernels do it with these, in the same order, so that a row gets the
// same bits from each: products stand only where none of them can be fused with a sum in one kernel and not in another.

// The largest score so far, and the sum of the weights relative to it.
struct Sum { largest: PerHead, total: PerHead }

// What two parts are multiplied with to be relative to one largest score.
struct Shares { kept: PerHead, taken: PerHead }

fn shares_of(before: PerHead, more: PerHead) -> Shares {
    let largest = max(before, more);
    return Shares(exps(before - largest), exps(more - largest));
}

fn joined(before: PerHead, more: PerHead, shares: Shares) -> PerHead {
    return fma(before, shares.kept, more * shares.taken);
}

fn joined_sum(before: Sum, more: Sum, shares: Shares) -> Sum {
    return Sum(max(before.largest, more.largest), joined(before.total, more.total, shares));
}

// The first position that a row sees.
fn first_seen(position: u32) -> u32 {
    return select(0u, position + 1u - WINDOW, position >= WINDOW);
}
