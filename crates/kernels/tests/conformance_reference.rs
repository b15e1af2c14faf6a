//! The reference passes its own suite, which says that the suite's cases are well formed.

use exotherm_kernels::conformance;
use exotherm_kernels::reference::ReferenceBackend;

conformance!(reference, ReferenceBackend);

#[test]
fn names_tell_cases_apart() {
    for op in conformance::OPS {
        let mut names: Vec<String> = conformance::cases_of(op).into_iter().map(|case| case.name).collect();
        println!("{op}: {} cases", names.len());
        assert!(names.len() >= 10, "{op} has only {} cases", names.len());
        names.sort();
        let twice: Vec<&[String]> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{op} has two cases of the name {twice:?}");
    }
}
