"""The marketplace that goes on after its log: rankers decide what is shown, the same shoppers answer."""
