//! Lists of CPUs and of memory nodes as the kernel writes them, `0-3,7` (cpuset(7), "List format").

use super::validate::invalid;
use crate::error::Result;

/// No kernel counts so far: what set_mempolicy(2) takes at most, and more than there are CPUs.
const END: usize = 1 << 15;

/// The set as words of a kernel's bit mask; the bit of number n is in word n / 64. As many words as the largest needs.
///
/// # Errors
/// `InvalidArgument` with the field's name for what is no list.
pub fn mask(field: &str, text: &str) -> Result<Vec<u64>> {
    let wrong = || invalid(format!("{field} is not a list like \"0-3,7\": {text:?}"));
    let mut mask = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<usize>().ok().filter(|number| digits && *number < END)
        };
        let (Some(first), Some(last)) = (number(first), number(last)) else { return Err(wrong()) };
        if first > last {
            return Err(wrong());
        }
        mask.resize(mask.len().max(last / 64 + 1), 0);
        (first..=last).for_each(|number| mask[number / 64] |= 1 << (number % 64));
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_mask_and_everything_else_is_refused() {
        assert_eq!(mask("f", "0-3,7").unwrap(), [0b1000_1111]);
        assert_eq!(mask("f", "64,1").unwrap(), [2, 1]);
        assert_eq!(mask("f", "1023-1024").unwrap().len(), 17);
        for text in ["", ",", "1,", "3-1", "-1", "1-", "a", "0-3, 7", "+1", "32768", "99999999999999999999"] {
            let error = mask("a.field", text).expect_err(text).to_string();
            assert!(error.starts_with("a.field is not a list") && error.contains(text), "{error}");
        }
    }
}
