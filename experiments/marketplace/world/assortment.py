"""The words of the simulated shop: aisles, product types, varieties, diet flags, sizes, use cases.

Twenty aisles of everyday goods. Nothing here is random; brands are invented (`brand_names`).
"""

from dataclasses import dataclass
from functools import cache

#: Facts about a product that a shopper can ask for; the position is the bit in `Catalog.flags_P`.
FLAGS = (
    "organic",
    "gluten free",
    "sugar free",
    "vegan",
    "low fat",
    "lactose free",
    "whole grain",
    "high protein",
    "low sodium",
    "decaf",
    "fragrance free",
    "eco",
)

# One block per aisle: "= aisle | flags | sizes", then one line per type:
# "substitute group  noun/synonym/... | shape | median price | varieties".
# Types of one aisle with the same group letter can stand in for each other.
_ASSORTMENT = """
= Pasta & Rice | gluten free, organic, whole grain, high protein | 250 g, 500 g, 1 kg
a pasta/spaghetti/penne | bag | 2.2 | durum, spinach, egg, red lentil, tomato
a noodles/ramen | bag | 2.0 | chicken, beef, miso, vegetable, chili
b rice/basmati | bag | 3.5 | jasmine, brown, wild, long grain
b couscous/quinoa | box | 3.2 | plain, herb, tomato, lemon
= Sauces & Spices | organic, gluten free, low sodium, vegan | 60 g, 190 g, 400 g
a pasta sauce/marinara | jar | 3.4 | tomato, basil, mushroom, chili, garlic
a pesto | jar | 3.9 | basil, tomato, walnut, garlic
b ketchup/tomato ketchup | bottle | 2.9 | classic, chili, curry
b mayonnaise/mayo | jar | 3.3 | classic, garlic, lemon, chipotle
c olive oil | bottle | 8.9 | mild, fruity, lemon, garlic
d spice mix/seasoning | can | 2.6 | curry, paprika, garlic, herb, chili
= Canned & Soup | organic, low sodium, gluten free, high protein | 300 g, 400 g, 800 g
a soup/broth | can | 2.4 | tomato, chicken, mushroom, lentil, vegetable
b canned beans/baked beans | can | 1.5 | kidney, black, white, tomato
b canned corn/sweetcorn | can | 1.6 | classic, crisp, smoked
c canned tuna/tuna chunks | can | 2.7 | olive oil, brine, lemon, chili
= Breakfast | whole grain, organic, gluten free, sugar free, high protein | 300 g, 500 g, 750 g
a cereal/corn flakes | box | 3.8 | chocolate, honey, cinnamon, strawberry, almond
a granola/muesli | bag | 4.6 | honey, almond, chocolate, coconut, berry
a oatmeal/porridge oats | box | 3.1 | plain, apple, cinnamon, maple, berry
b jam/marmalade | jar | 3.3 | strawberry, raspberry, apricot, orange, blueberry
b peanut butter/nut butter | jar | 4.7 | crunchy, smooth, honey, almond
b honey/blossom honey | jar | 5.9 | acacia, forest, lavender
= Bakery | whole grain, gluten free, organic, high protein | 250 g, 500 g, 750 g
a bread/sliced bread | bag | 2.9 | wheat, rye, sourdough, oat, seeded
a bagels/rolls | bag | 3.0 | plain, sesame, cinnamon, onion
b tortillas/wraps | pouch | 2.7 | corn, wheat, spinach
c muffins/cupcakes | tray | 4.1 | blueberry, chocolate, lemon, vanilla
= Baking | organic, gluten free, sugar free, vegan | 250 g, 500 g, 1 kg
a flour/baking flour | bag | 2.0 | wheat, spelt, almond, rye
b sugar/sweetener | bag | 2.1 | cane, brown, powdered, coconut
c cake mix/brownie mix | box | 3.6 | chocolate, vanilla, lemon, carrot
= Snacks | gluten free, organic, vegan, low fat, low sodium | 90 g, 150 g, 300 g
a potato chips/crisps | bag | 2.8 | salted, paprika, sour cream, vinegar, chili
a tortilla chips/nachos | bag | 2.9 | salted, cheese, chili, lime
a popcorn/microwave popcorn | box | 2.6 | butter, salted, caramel, cheese
b crackers/rice cakes | box | 2.7 | sesame, salted, rosemary, cheese
c nuts/mixed nuts | can | 5.2 | salted, honey, smoked, almond
c dried fruit/raisins | pouch | 4.0 | mango, apricot, cranberry, apple
= Sweets | sugar free, vegan, organic, gluten free | 50 g, 100 g, 200 g
a chocolate bar/chocolate | box | 2.6 | milk, dark, hazelnut, caramel, mint, orange
a cookies/biscuits | box | 3.0 | chocolate, butter, oat, coconut, lemon
b gummy candy/gummies | pouch | 2.2 | sour, cherry, cola, peach
b chewing gum/mints | pouch | 1.6 | mint, cherry, cinnamon
c protein bar/energy bar | pouch | 2.4 | chocolate, peanut, vanilla, caramel, berry
= Dairy & Eggs | lactose free, low fat, organic, high protein | 200 g, 500 g, 1 l
a milk/whole milk | carton | 1.9 | fresh, chocolate, vanilla, strawberry
a plant milk/oat drink | carton | 2.6 | oat, almond, soy, coconut, vanilla
b yogurt/greek yogurt | tub | 1.8 | strawberry, vanilla, blueberry, peach, plain
c cheese/cheese slices | tray | 4.2 | cheddar, gouda, mozzarella, smoked, herb
c cream cheese/cheese spread | tub | 2.7 | plain, herb, garlic, salmon
d butter/margarine | box | 3.1 | salted, unsalted, herb
= Produce | organic | 250 g, 500 g, 1 kg
a apples/apple bag | tray | 3.4 | gala, fuji, green
a berries/fresh berries | tray | 4.4 | strawberry, blueberry, raspberry
b tomatoes/cherry tomatoes | tray | 3.0 | vine, plum, yellow
b salad/lettuce mix | pouch | 2.8 | spinach, romaine, rocket
= Meat & Fish | organic, low fat, low sodium, high protein | 200 g, 400 g, 800 g
a chicken breast/chicken fillet | tray | 7.2 | plain, lemon, herb, smoked
a sausages/bratwurst | tray | 5.4 | pork, chicken, herb, chili
b salmon/salmon fillet | tray | 9.8 | fresh, smoked, lemon
c tofu/plant burger | box | 4.3 | plain, smoked, herb, teriyaki
= Frozen | gluten free, organic, vegan, low fat, high protein | 300 g, 500 g, 1 l
a frozen pizza/pizza | box | 4.9 | margherita, salami, mushroom, spinach, cheese
a frozen lasagna/ready meal | box | 5.3 | beef, vegetable, salmon, spinach
b ice cream/gelato | tub | 5.5 | vanilla, chocolate, strawberry, caramel, mint
b popsicles/ice lollies | box | 3.9 | strawberry, lemon, mango, cola
c frozen vegetables/frozen peas | bag | 2.9 | peas, broccoli, spinach, corn
= Water & Soda | sugar free, organic, low sodium | 330 ml, 1 l, 1.5 l
a sparkling water/seltzer | bottle | 1.3 | plain, lemon, lime, berry, grapefruit
a soda/soft drink | can | 1.5 | cola, orange, lemon, ginger, cherry
b juice/fruit juice | carton | 2.9 | orange, apple, mango, grape, tomato
b smoothie/fruit smoothie | bottle | 3.4 | mango, berry, banana, spinach
c energy drink/sports drink | can | 2.0 | classic, berry, mango, lime
= Coffee & Tea | organic, decaf, sugar free | 100 g, 250 g, 500 g
a coffee/ground coffee | bag | 7.4 | dark roast, light roast, vanilla, hazelnut
a coffee pods/coffee capsules | box | 6.1 | espresso, lungo, caramel, hazelnut
b tea/tea bags | box | 3.8 | green, black, mint, chamomile, lemon
c hot chocolate/cocoa | can | 4.2 | dark, milk, mint, caramel
= Baby | organic, fragrance free, sugar free, gluten free | 120 g, 200 g, 40 pcs
a baby food/baby puree | jar | 1.7 | apple, carrot, banana, pumpkin, mango
b diapers/nappies | box | 13.5 | newborn, medium, overnight
b baby wipes/wet wipes | pouch | 2.8 | aloe, chamomile, pure
= Pets | gluten free, organic, high protein | 400 g, 1 kg, 3 kg
a dog food/kibble | bag | 12.5 | chicken, beef, lamb, salmon
a dog treats/dog chews | pouch | 4.4 | chicken, beef, peanut
b cat food/wet cat food | can | 1.6 | tuna, chicken, salmon, beef
b cat litter | bag | 8.8 | clay, lavender, wood
= Cleaning | eco, fragrance free, vegan | 500 ml, 1 l, 2 l
a laundry detergent/washing liquid | bottle | 9.4 | lavender, fresh linen, lemon, sensitive
a fabric softener | bottle | 4.6 | lavender, vanilla, fresh linen
b dish soap/dishwashing liquid | bottle | 2.9 | lemon, apple, aloe, grapefruit
b dishwasher tablets/dish tabs | box | 9.1 | lemon, classic, power
c all purpose cleaner/surface spray | spray | 3.6 | lemon, orange, pine, lavender
= Paper & Home | eco, fragrance free | 4 pcs, 8 pcs, 16 pcs
a toilet paper/bath tissue | roll | 6.2 | soft, chamomile, strong
a paper towels/kitchen roll | roll | 4.7 | classic, printed, strong
b trash bags/bin liners | roll | 4.2 | lemon, strong, small
c candles/scented candle | jar | 8.2 | vanilla, cinnamon, lavender, pine
= Personal Care | fragrance free, vegan, organic, eco | 75 ml, 250 ml, 400 ml
a shampoo/hair wash | bottle | 4.9 | coconut, argan, mint, chamomile, volume
a conditioner/hair mask | tube | 5.2 | coconut, argan, almond
b body wash/shower gel | bottle | 3.6 | lavender, coconut, lime, almond
b hand soap/soap | spray | 2.7 | lavender, lemon, aloe, almond
c toothpaste/dental gel | tube | 3.1 | mint, whitening, cinnamon, sensitive
d deodorant/antiperspirant | spray | 4.3 | fresh, lavender, lime, sensitive
= Health | sugar free, vegan, gluten free, organic | 30 pcs, 60 pcs, 120 pcs
a vitamins/multivitamin | jar | 9.9 | orange, berry, zinc, iron
a fish oil/omega capsules | jar | 11.5 | lemon, pure, strong
b cough drops/throat lozenges | pouch | 3.3 | honey, mint, cherry, lemon
b pain relief/pain tablets | box | 6.4 | fast, night, gentle
c protein powder/whey protein | can | 21.0 | chocolate, vanilla, strawberry, banana
"""

#: Searches for an occasion, with the types that satisfy them. No word needs to occur in a title.
USE_CASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("movie night", ("popcorn", "potato chips", "soda", "ice cream", "gummy candy", "nuts")),
    ("quick dinner", ("frozen pizza", "frozen lasagna", "noodles", "soup", "pasta sauce")),
    ("italian dinner", ("pasta", "pasta sauce", "pesto", "olive oil")),
    ("breakfast ideas", ("cereal", "granola", "oatmeal", "bagels", "jam", "yogurt")),
    ("school lunch", ("bread", "cheese", "juice", "apples", "muffins", "peanut butter")),
    ("post workout", ("protein bar", "protein powder", "energy drink", "smoothie")),
    ("baking day", ("flour", "sugar", "butter", "cake mix")),
    ("birthday party", ("cake mix", "soda", "gummy candy", "candles", "popsicles", "potato chips")),
    ("barbecue", ("sausages", "chicken breast", "ketchup", "tofu", "spice mix", "mayonnaise")),
    ("sandwich makings", ("bread", "cheese", "cream cheese", "mayonnaise", "tomatoes")),
    ("taco tuesday", ("tortillas", "canned beans", "tortilla chips", "canned corn", "spice mix")),
    ("new puppy", ("dog food", "dog treats")),
    ("new kitten", ("cat food", "cat litter")),
    ("newborn essentials", ("diapers", "baby wipes", "baby food")),
    ("spring cleaning", ("all purpose cleaner", "trash bags", "paper towels", "dish soap")),
    ("laundry day", ("laundry detergent", "fabric softener")),
    ("feeling sick", ("cough drops", "tea", "soup", "pain relief", "honey", "vitamins")),
    ("sore throat", ("cough drops", "honey", "tea")),
    ("hot summer day", ("ice cream", "popsicles", "sparkling water", "juice", "smoothie")),
    ("cozy evening", ("hot chocolate", "tea", "candles", "cookies")),
    ("office snacks", ("nuts", "protein bar", "crackers", "dried fruit", "cookies")),
    ("morning caffeine", ("coffee", "coffee pods", "energy drink", "tea")),
    ("healthy snack", ("dried fruit", "nuts", "berries", "apples", "yogurt", "protein bar")),
    ("game day", ("tortilla chips", "potato chips", "sausages", "frozen pizza", "soda")),
    ("camping food", ("canned beans", "noodles", "canned tuna", "granola", "protein bar")),
    ("pantry staples", ("rice", "pasta", "canned beans", "flour", "olive oil", "canned tuna")),
    ("bathroom restock", ("toilet paper", "hand soap", "toothpaste", "shampoo")),
    ("travel toiletries", ("shampoo", "toothpaste", "deodorant", "body wash", "conditioner")),
    ("meatless monday", ("tofu", "canned beans", "couscous", "frozen vegetables")),
    ("fresh salad", ("salad", "tomatoes", "olive oil", "nuts")),
    ("vegan basics", ("plant milk", "tofu", "couscous", "canned beans")),
    ("something sweet", ("chocolate bar", "cookies", "gummy candy", "ice cream", "muffins")),
    ("spa at home", ("candles", "body wash", "conditioner", "tea")),
    ("immune support", ("vitamins", "fish oil", "honey", "juice")),
)

_BRAND_STARTS = (
    "Al Bel Bri Cal Cor Dal Del Dor El Fal Fen Gal Gre Hal Har Hol Is Jas Kel Kor La Lin Lor Mar Mel Mor Nar "
    "Nel Nor Ol Or Pel Per Pom Quin Ral Ren Ros Sal Sel Sol Tal Ten Tor Ul Val Ver Vin Wel Wil Yar Zel Zor"
)
_BRAND_ENDS = (
    "anda avo bria brook by cello cora dale delle dora ella emo enza era field ford gate gold grove hart ia "
    "ique isca ista iva kin land lia lino lo mar mere mont nova ona ora oso relle ria sano sol stead tano "
    "tica tree una vale vana via well wick worth zia"
)
#: Coprime to the number of starts times ends, so that stepping visits every pair once.
_BRAND_STEP = 617
_BRAND_SECOND_WORDS = ["Farms", "Kitchen", "House", "Garden", "Valley", "Select", "Naturals", "Brothers"]


@dataclass(frozen=True)
class ProductType:
    """One kind of product. `names[0]` is the noun that shoppers type; the others also occur in titles."""

    names: tuple[str, ...]
    aisle: int
    group: str
    shape: str
    median_price: float
    varieties: tuple[str, ...]
    flags: tuple[int, ...]
    sizes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Assortment:
    """All types; `varieties` is the shop-wide list, so "chocolate" is one variety in every type."""

    aisles: tuple[str, ...]
    types: tuple[ProductType, ...]
    varieties: tuple[str, ...]

    def type_index(self, name: str) -> int:
        """Position of a type by its noun; `type_index("pasta")` is 0."""
        return [kind.name for kind in self.types].index(name)


@cache
def load_assortment() -> Assortment:
    """Parse the table above."""
    aisles: list[str] = []
    types: list[ProductType] = []
    flags: tuple[int, ...] = ()
    sizes: tuple[str, ...] = ()
    for line in _ASSORTMENT.strip().splitlines():
        cells = [cell.strip() for cell in line[2:].split("|")]
        if line.startswith("="):
            aisles.append(cells[0])
            flags = tuple(FLAGS.index(flag) for flag in _words(cells[1]))
            sizes = _words(cells[2])
            continue
        names, shape, price, varieties = cells
        types.append(
            ProductType(
                names=tuple(names.split("/")),
                aisle=len(aisles) - 1,
                group=f"{aisles[-1]}:{line[0]}",
                shape=shape,
                median_price=float(price),
                varieties=_words(varieties),
                flags=flags,
                sizes=sizes,
            )
        )
    varieties_seen = sorted({variety for kind in types for variety in kind.varieties})
    return Assortment(aisles=tuple(aisles), types=tuple(types), varieties=tuple(varieties_seen))


def brand_names() -> list[str]:
    """Invented brands, all different: one word first, then two words. Neighbours do not sound alike."""
    ordered = [start + end for end in _BRAND_ENDS.split() for start in _BRAND_STARTS.split()]
    single = [ordered[index * _BRAND_STEP % len(ordered)] for index in range(len(ordered))]
    return single + [f"{name} {second}" for second in _BRAND_SECOND_WORDS for name in single]


def _words(cell: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in cell.split(","))
