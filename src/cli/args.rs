//! Go's way of writing flags, which scripts written for runc may use: `-detach` for `--detach`, `--detach=false`.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// The same arguments as clap wants them. What comes after the first argument of a verb that is no flag is left as it is: it may
/// be the program's.
pub fn from_go(command: &Command, args: Vec<OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut all: Vec<OsString> = args.next().into_iter().collect();
    let mut command = command;
    let mut in_verb = false;
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str().filter(|text| text.len() > 1 && text.starts_with('-') && *text != "--") else {
            let verb = arg.to_str().filter(|_| !in_verb).and_then(|name| command.find_subcommand(name));
            // The program's words come behind it, whatever they look like.
            if in_verb && arg != "--" && command.get_arguments().any(Arg::is_trailing_var_arg_set) {
                all.push("--".into());
            }
            all.push(arg);
            match verb {
                Some(verb) => (command, in_verb) = (verb, true),
                None => break,
            }
            continue;
        };
        let name = text.trim_start_matches('-');
        let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
        let Some(flag) = command.get_arguments().find(|arg| is_named(arg, name)) else {
            all.push(arg);
            continue;
        };
        let dashes = if name.chars().count() == 1 { "-" } else { "--" };
        let takes_value = matches!(flag.get_action(), ArgAction::Set | ArgAction::Append);
        // One whose value may be left out has it behind a `=` alone.
        let may_lack = flag.get_num_args().is_some_and(|values| values.min_values() == 0);
        match (takes_value, value) {
            (true, None) if may_lack => all.push(format!("{dashes}{name}").into()),
            (true, Some(value)) => all.push(format!("{dashes}{name}={value}").into()),
            (true, None) => {
                all.push(format!("{dashes}{name}").into());
                all.extend(args.next());
            }
            (false, Some("false" | "0" | "f" | "F" | "FALSE" | "False")) => {}
            (false, None | Some("true" | "1" | "t" | "T" | "TRUE" | "True")) => {
                all.push(format!("{dashes}{name}").into());
            }
            (false, Some(_)) => all.push(arg),
        }
    }
    all.extend(args);
    all
}

fn is_named(arg: &Arg, name: &str) -> bool {
    let mut letters = name.chars();
    arg.get_long() == Some(name)
        || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
        || matches!((letters.next(), letters.next()), (Some(letter), None) if arg.get_short() == Some(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(args: &str) -> String {
        let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let verb = Command::new("run").arg(flag("detach").short('d')).arg(Arg::new("bundle").long("bundle").short('b'));
        let command = Command::new("dray").arg(flag("debug")).arg(Arg::new("root").long("root")).subcommand(verb);
        let args = from_go(&command, args.split(' ').map(OsString::from).collect());
        args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        assert_eq!(
            told("dray -debug -root /a run -detach -b /c id -detach"),
            "dray --debug --root /a run --detach -b /c id -detach"
        );
        assert_eq!(told("dray --root=run run -d=true id"), "dray --root=run run -d id");
    }

    #[test]
    fn a_flag_can_be_said_not_to_be() {
        assert_eq!(told("dray --debug=false run --detach=true x"), "dray run --detach x");
        assert_eq!(told("dray --debug=maybe run x"), "dray --debug=maybe run x");
    }

    #[test]
    fn a_value_that_may_be_left_out_is_not_taken_from_the_next() {
        let trace = Arg::new("trace").long("trace").num_args(0..=1).require_equals(true).action(ArgAction::Set);
        let detach = Arg::new("detach").long("detach").action(ArgAction::SetTrue);
        let command = Command::new("dray").subcommand(Command::new("run").arg(trace).arg(detach).arg(Arg::new("id")));
        for (args, wanted) in [("-trace -detach id", "--trace --detach id"), ("-trace=f id", "--trace=f id")] {
            let line = format!("dray run {args}");
            let args = from_go(&command, line.split(' ').map(OsString::from).collect());
            assert_eq!(args[2..].iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" "), wanted);
        }
    }

    #[test]
    fn words_behind_the_first_are_a_programs() {
        let words = Arg::new("words").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true);
        let flag = Arg::new("tty").long("tty").short('t').action(ArgAction::SetTrue);
        let command = Command::new("dray").subcommand(Command::new("exec").arg(flag).arg(Arg::new("id")).arg(words));
        for (args, wanted) in [("-t a ls -t", "-t -- a ls -t"), ("a --tty", "-- a --tty"), ("a -- b", "-- a -- b")] {
            let line = format!("dray exec {args}");
            let args = from_go(&command, line.split(' ').map(OsString::from).collect());
            assert_eq!(args[2..].iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" "), wanted);
            let matches = command.clone().try_get_matches_from(args).unwrap();
            let matches = matches.subcommand_matches("exec").unwrap();
            assert_eq!(matches.get_one::<String>("id").unwrap(), "a");
            let words: Vec<_> = matches.get_many::<String>("words").unwrap().map(String::as_str).collect();
            assert_eq!(words.join(" "), wanted.split_once("-- a ").unwrap().1);
        }
    }

    #[test]
    fn values_are_no_flags() {
        assert_eq!(told("dray --root -debug run id"), "dray --root -debug run id");
        assert_eq!(told("dray run -- -detach"), "dray run -- -detach");
    }
}
