"""Rules as data: what algate has netfilter do."""
