//! The text of a kernel: what it binds, its constants, and the parts that it is put together from.

use std::fmt::Write as _;

use super::record::View;
use super::step;

/// Arithmetic that all kernels may use.
const MATH: &str = include_str!("wgsl/math.wgsl");
/// Sums and maxima over a workgroup.
const REDUCE: &str = include_str!("wgsl/reduce.wgsl");

/// A kernel that is being put together. `WG` is the number of lanes of its workgroup.
pub(crate) struct Kernel {
    pub label: &'static str,
    enabled: Vec<Extension>,
    constants: String,
    parts: String,
    bindings: Vec<Binding>,
}

/// What a kernel uses beyond what every device has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extension {
    Halves,
    Matrices,
}

/// A buffer, or a part of one, under a name.
pub(crate) struct Binding {
    name: &'static str,
    of: &'static str,
    pub view: View,
    pub is_written: bool,
}

impl Kernel {
    pub fn new(label: &'static str, lanes: usize) -> Kernel {
        let constants = format!("const WG: u32 = {lanes}u;\n");
        Kernel { label, enabled: Vec::new(), constants, parts: String::new(), bindings: Vec::new() }
    }

    /// Lets the kernel use something that its device is known to have.
    pub fn enable(&mut self, extension: Extension) {
        if !self.enabled.contains(&extension) {
            self.enabled.push(extension);
        }
    }

    /// Binds an array of `of` that is read.
    pub fn read(&mut self, name: &'static str, of: &'static str, view: View) {
        self.bindings.push(Binding { name, of, view, is_written: false });
    }

    /// Binds an array of `of` that is written, and may be read.
    pub fn write(&mut self, name: &'static str, of: &'static str, view: View) {
        self.bindings.push(Binding { name, of, view, is_written: true });
    }

    pub fn size(&mut self, name: &str, value: usize) {
        self.add(format_args!("const {name}: u32 = {value}u;\n"));
    }

    /// A float, in the shortest spelling that stands for it alone.
    pub fn float(&mut self, name: &str, value: f32) {
        self.add(format_args!("const {name}: f32 = f32({value:e});\n"));
    }

    pub fn flag(&mut self, name: &str, value: bool) {
        self.add(format_args!("const {name}: bool = {value};\n"));
    }

    fn add(&mut self, constant: std::fmt::Arguments) {
        // Writing to a string does not fail.
        let _ = self.constants.write_fmt(constant);
    }

    pub fn part(&mut self, text: &str) {
        self.parts.push_str(text);
        self.parts.push('\n');
    }

    pub fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    /// The whole of it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for extension in &self.enabled {
            // Lanes in step need no word here, though they do in browsers.
            text.push_str(match extension {
                Extension::Halves => "enable f16;\n",
                Extension::Matrices => "enable wgpu_cooperative_matrix;\n",
            });
        }
        text += &step::wgsl();
        for (i, Binding { name, of, is_written, .. }) in self.bindings.iter().enumerate() {
            let access = if *is_written { "read_write" } else { "read" };
            let _ = writeln!(text, "@group(1) @binding({i}) var<storage, {access}> {name}: array<{of}>;");
        }
        [text.as_str(), &self.constants, MATH, REDUCE, &self.parts].concat()
    }
}
