"""The words of the demo world in English, Arabic and Chinese, and how names of people and cities are composed.

Every table row is one concept; Arabic nouns are masculine and regular, so that the definite form is always `ال` + noun.
Names are spelled syllable by syllable, so that the same person has a name in each script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Language = Literal["en", "ar", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)


@dataclass(frozen=True)
class Term:
    """One concept or name, in the three languages."""

    en: str
    ar: str
    zh: str

    def text(self, language: Language) -> str:
        """Return the word in `language`."""
        return {"en": self.en, "ar": self.ar, "zh": self.zh}[language]


def _table(rows: str) -> tuple[Term, ...]:
    return tuple(Term(*(cell.strip() for cell in row.split("/"))) for row in rows.strip().splitlines())


PROFESSIONS = _table("""
baker / خباز / 面包师
doctor / طبيب / 医生
teacher / معلم / 教师
farmer / مزارع / 农民
painter / رسام / 画家
driver / سائق / 司机
nurse / ممرض / 护士
engineer / مهندس / 工程师
writer / كاتب / 作家
tailor / خياط / 裁缝
pilot / طيار / 飞行员
carpenter / نجار / 木匠
cook / طباخ / 厨师
journalist / صحفي / 记者
soldier / جندي / 士兵
poet / شاعر / 诗人
fisherman / صياد / 渔夫
guard / حارس / 保安
barber / حلاق / 理发师
sailor / بحار / 水手
translator / مترجم / 翻译
gardener / بستاني / 园丁
butcher / جزار / 屠夫
blacksmith / حداد / 铁匠
""")

OBJECTS = _table("""
carpets / سجاد / 地毯
lamps / مصابيح / 台灯
honey / عسل / 蜂蜜
shoes / أحذية / 鞋子
books / كتب / 图书
clocks / ساعات / 钟表
apples / تفاح / 苹果
fish / سمك / 鲜鱼
bread / خبز / 面包
coffee / قهوة / 咖啡
tea / شاي / 茶叶
bags / حقائب / 背包
silk / حرير / 丝绸
coats / معاطف / 大衣
milk / حليب / 牛奶
olives / زيتون / 橄榄
toys / ألعاب / 玩具
mirrors / مرايا / 镜子
tables / طاولات / 桌子
hats / قبعات / 帽子
roses / ورود / 玫瑰
cheese / جبن / 奶酪
""")

EVENTS = _table("""
race / سباق / 赛跑
exhibition / معرض / 展览
festival / مهرجان / 艺术节
conference / مؤتمر / 会议
wedding / زفاف / 婚礼
concert / حفل / 音乐会
auction / مزاد / 拍卖会
parade / موكب / 游行
market / سوق / 集市
meeting / اجتماع / 聚会
show / عرض / 表演
celebration / احتفال / 庆典
dinner / عشاء / 晚宴
lecture / خطاب / 演讲
""")

MONTHS = _table("""
January / يناير / 一月
February / فبراير / 二月
March / مارس / 三月
April / أبريل / 四月
May / مايو / 五月
June / يونيو / 六月
July / يوليو / 七月
August / أغسطس / 八月
September / سبتمبر / 九月
October / أكتوبر / 十月
November / نوفمبر / 十一月
December / ديسمبر / 十二月
""")

GAMES = _table("""
chess / الشطرنج / 象棋
tennis / التنس / 网球
boxing / الملاكمة / 拳击
swimming / السباحة / 游泳
running / الجري / 跑步
wrestling / المصارعة / 摔跤
golf / الغولف / 高尔夫
archery / الرماية / 射箭
fencing / المبارزة / 击剑
cycling / الدراجات / 自行车
billiards / البلياردو / 台球
rowing / التجديف / 划船
skiing / التزلج / 滑雪
""")

SYLLABLES = _table("""
ma / ما / 马
ro / رو / 罗
ka / كا / 卡
li / لي / 利
to / تو / 托
na / نا / 娜
sa / سا / 萨
du / دو / 杜
be / بي / 贝
mi / مي / 米
lo / لو / 洛
ta / تا / 塔
ni / ني / 尼
go / غو / 戈
ra / را / 拉
di / دي / 迪
fa / فا / 法
ha / ها / 哈
su / سو / 苏
ki / كي / 基
wa / وا / 瓦
ya / يا / 亚
ze / زي / 泽
sha / شا / 沙
mo / مو / 莫
ri / ري / 里
no / نو / 诺
da / دا / 达
te / تي / 特
ga / غا / 加
ju / جو / 朱
ba / با / 巴
ko / كو / 科
shi / شي / 希
""")

PERSON_ENDINGS = _table("""
van / فان / 凡
mir / مير / 米尔
len / لين / 伦
tan / تان / 坦
gor / غور / 戈尔
nis / نيس / 尼斯
rad / راد / 拉德
bek / بيك / 贝克
kos / كوس / 科斯
rin / رين / 林
dal / دال / 达尔
sum / سوم / 松
""")

CITY_ENDINGS = _table("""
port / بورت / 港
ton / تون / 顿
burg / بورغ / 堡
grad / غراد / 格勒
dale / ديل / 谷
haven / هافن / 湾
field / فيلد / 原
""")


def _compose(rng: np.random.Generator, endings: tuple[Term, ...]) -> Term:
    picks = [SYLLABLES[int(i)] for i in rng.integers(len(SYLLABLES), size=2)]
    parts = [*picks, endings[int(rng.integers(len(endings)))]]
    return Term("".join(p.en for p in parts).capitalize(), "".join(p.ar for p in parts), "".join(p.zh for p in parts))


def person(rng: np.random.Generator) -> Term:
    """Return a random name of a person: two syllables and an ending, about 14 000 possible."""
    return _compose(rng, PERSON_ENDINGS)


def city(rng: np.random.Generator) -> Term:
    """Return a random name of a city: two syllables and an ending, about 8 000 possible."""
    return _compose(rng, CITY_ENDINGS)


def price(rng: np.random.Generator) -> Term:
    """Return a random price from 11 to 98, in digits, the same in the three languages."""
    digits = str(int(rng.integers(11, 99)))
    return Term(digits, digits, digits)
