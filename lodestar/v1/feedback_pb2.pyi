from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeedbackForm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_FORM_UNSPECIFIED: _ClassVar[FeedbackForm]
    FEEDBACK_FORM_PAIR: _ClassVar[FeedbackForm]
    FEEDBACK_FORM_RATING: _ClassVar[FeedbackForm]
    FEEDBACK_FORM_RANKING: _ClassVar[FeedbackForm]
    FEEDBACK_FORM_ASPECTS: _ClassVar[FeedbackForm]
    FEEDBACK_FORM_DEMONSTRATION: _ClassVar[FeedbackForm]
    FEEDBACK_FORM_PROMPT: _ClassVar[FeedbackForm]

class ItemRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ITEM_ROLE_UNSPECIFIED: _ClassVar[ItemRole]
    ITEM_ROLE_GOLD: _ClassVar[ItemRole]
    ITEM_ROLE_PRACTICE: _ClassVar[ItemRole]

class PromptStyle(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_STYLE_UNSPECIFIED: _ClassVar[PromptStyle]
    PROMPT_STYLE_PLAIN: _ClassVar[PromptStyle]
    PROMPT_STYLE_FEW_SHOT: _ClassVar[PromptStyle]
    PROMPT_STYLE_USE_CASE: _ClassVar[PromptStyle]
FEEDBACK_FORM_UNSPECIFIED: FeedbackForm
FEEDBACK_FORM_PAIR: FeedbackForm
FEEDBACK_FORM_RATING: FeedbackForm
FEEDBACK_FORM_RANKING: FeedbackForm
FEEDBACK_FORM_ASPECTS: FeedbackForm
FEEDBACK_FORM_DEMONSTRATION: FeedbackForm
FEEDBACK_FORM_PROMPT: FeedbackForm
ITEM_ROLE_UNSPECIFIED: ItemRole
ITEM_ROLE_GOLD: ItemRole
ITEM_ROLE_PRACTICE: ItemRole
PROMPT_STYLE_UNSPECIFIED: PromptStyle
PROMPT_STYLE_PLAIN: PromptStyle
PROMPT_STYLE_FEW_SHOT: PromptStyle
PROMPT_STYLE_USE_CASE: PromptStyle

class FeedbackAspect(_message.Message):
    __slots__ = ("name", "question", "low", "high", "low_name", "high_name", "share")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    LOW_NAME_FIELD_NUMBER: _ClassVar[int]
    HIGH_NAME_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    name: str
    question: str
    low: int
    high: int
    low_name: str
    high_name: str
    share: float
    def __init__(self, name: _Optional[str] = ..., question: _Optional[str] = ..., low: _Optional[int] = ..., high: _Optional[int] = ..., low_name: _Optional[str] = ..., high_name: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class Campaign(_message.Message):
    __slots__ = ("name", "form", "instructions", "overlap", "strength", "rank_after", "aspects", "use_cases", "lease_seconds", "limit", "gold_share")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    RANK_AFTER_FIELD_NUMBER: _ClassVar[int]
    ASPECTS_FIELD_NUMBER: _ClassVar[int]
    USE_CASES_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    GOLD_SHARE_FIELD_NUMBER: _ClassVar[int]
    name: str
    form: FeedbackForm
    instructions: str
    overlap: int
    strength: bool
    rank_after: bool
    aspects: _containers.RepeatedCompositeFieldContainer[FeedbackAspect]
    use_cases: _containers.RepeatedScalarFieldContainer[str]
    lease_seconds: float
    limit: int
    gold_share: float
    def __init__(self, name: _Optional[str] = ..., form: _Optional[_Union[FeedbackForm, str]] = ..., instructions: _Optional[str] = ..., overlap: _Optional[int] = ..., strength: bool = ..., rank_after: bool = ..., aspects: _Optional[_Iterable[_Union[FeedbackAspect, _Mapping]]] = ..., use_cases: _Optional[_Iterable[str]] = ..., lease_seconds: _Optional[float] = ..., limit: _Optional[int] = ..., gold_share: _Optional[float] = ...) -> None: ...

class FeedbackItem(_message.Message):
    __slots__ = ("id", "prompt", "completions", "models", "priority", "role", "expected", "explanation", "style")
    ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    STYLE_FIELD_NUMBER: _ClassVar[int]
    id: str
    prompt: str
    completions: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedScalarFieldContainer[str]
    priority: float
    role: ItemRole
    expected: Verdict
    explanation: str
    style: PromptStyle
    def __init__(self, id: _Optional[str] = ..., prompt: _Optional[str] = ..., completions: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[str]] = ..., priority: _Optional[float] = ..., role: _Optional[_Union[ItemRole, str]] = ..., expected: _Optional[_Union[Verdict, _Mapping]] = ..., explanation: _Optional[str] = ..., style: _Optional[_Union[PromptStyle, str]] = ...) -> None: ...

class PairVerdict(_message.Message):
    __slots__ = ("label", "strength", "both_bad")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    BOTH_BAD_FIELD_NUMBER: _ClassVar[int]
    label: float
    strength: int
    both_bad: bool
    def __init__(self, label: _Optional[float] = ..., strength: _Optional[int] = ..., both_bad: bool = ...) -> None: ...

class Marks(_message.Message):
    __slots__ = ("completions",)
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    completions: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, completions: _Optional[_Iterable[bool]] = ...) -> None: ...

class RatingVerdict(_message.Message):
    __slots__ = ("overall", "marks", "ranking")
    class MarksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Marks
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Marks, _Mapping]] = ...) -> None: ...
    OVERALL_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    overall: _containers.RepeatedScalarFieldContainer[int]
    marks: _containers.MessageMap[str, Marks]
    ranking: RankingVerdict
    def __init__(self, overall: _Optional[_Iterable[int]] = ..., marks: _Optional[_Mapping[str, Marks]] = ..., ranking: _Optional[_Union[RankingVerdict, _Mapping]] = ...) -> None: ...

class RankingVerdict(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: _containers.RepeatedCompositeFieldContainer[Tied]
    def __init__(self, order: _Optional[_Iterable[_Union[Tied, _Mapping]]] = ...) -> None: ...

class Tied(_message.Message):
    __slots__ = ("completions",)
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    completions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, completions: _Optional[_Iterable[int]] = ...) -> None: ...

class AspectVerdict(_message.Message):
    __slots__ = ("aspect", "ratings")
    ASPECT_FIELD_NUMBER: _ClassVar[int]
    RATINGS_FIELD_NUMBER: _ClassVar[int]
    aspect: str
    ratings: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, aspect: _Optional[str] = ..., ratings: _Optional[_Iterable[int]] = ...) -> None: ...

class WrittenPrompt(_message.Message):
    __slots__ = ("style", "text", "examples", "use_case")
    STYLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    USE_CASE_FIELD_NUMBER: _ClassVar[int]
    style: PromptStyle
    text: str
    examples: _containers.RepeatedCompositeFieldContainer[Exchange]
    use_case: str
    def __init__(self, style: _Optional[_Union[PromptStyle, str]] = ..., text: _Optional[str] = ..., examples: _Optional[_Iterable[_Union[Exchange, _Mapping]]] = ..., use_case: _Optional[str] = ...) -> None: ...

class Exchange(_message.Message):
    __slots__ = ("query", "response")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    query: str
    response: str
    def __init__(self, query: _Optional[str] = ..., response: _Optional[str] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("pair", "rating", "ranking", "aspect", "demonstration", "prompt")
    PAIR_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    ASPECT_FIELD_NUMBER: _ClassVar[int]
    DEMONSTRATION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    pair: PairVerdict
    rating: RatingVerdict
    ranking: RankingVerdict
    aspect: AspectVerdict
    demonstration: str
    prompt: WrittenPrompt
    def __init__(self, pair: _Optional[_Union[PairVerdict, _Mapping]] = ..., rating: _Optional[_Union[RatingVerdict, _Mapping]] = ..., ranking: _Optional[_Union[RankingVerdict, _Mapping]] = ..., aspect: _Optional[_Union[AspectVerdict, _Mapping]] = ..., demonstration: _Optional[str] = ..., prompt: _Optional[_Union[WrittenPrompt, _Mapping]] = ...) -> None: ...

class Judgement(_message.Message):
    __slots__ = ("id", "position", "item_id", "annotator", "verdict", "shown", "unsafe", "note", "seconds", "judged_at", "set_aside", "role", "groups")
    ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    UNSAFE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    JUDGED_AT_FIELD_NUMBER: _ClassVar[int]
    SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    id: str
    position: int
    item_id: str
    annotator: str
    verdict: Verdict
    shown: _containers.RepeatedScalarFieldContainer[int]
    unsafe: bool
    note: str
    seconds: float
    judged_at: float
    set_aside: str
    role: ItemRole
    groups: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., position: _Optional[int] = ..., item_id: _Optional[str] = ..., annotator: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., shown: _Optional[_Iterable[int]] = ..., unsafe: bool = ..., note: _Optional[str] = ..., seconds: _Optional[float] = ..., judged_at: _Optional[float] = ..., set_aside: _Optional[str] = ..., role: _Optional[_Union[ItemRole, str]] = ..., groups: _Optional[_Iterable[str]] = ...) -> None: ...

class AddItemsRequest(_message.Message):
    __slots__ = ("campaign", "items")
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    campaign: Campaign
    items: _containers.RepeatedCompositeFieldContainer[FeedbackItem]
    def __init__(self, campaign: _Optional[_Union[Campaign, _Mapping]] = ..., items: _Optional[_Iterable[_Union[FeedbackItem, _Mapping]]] = ...) -> None: ...

class AddItemsResponse(_message.Message):
    __slots__ = ("added", "known", "link")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    added: int
    known: int
    link: str
    def __init__(self, added: _Optional[int] = ..., known: _Optional[int] = ..., link: _Optional[str] = ...) -> None: ...

class WatchJudgementsRequest(_message.Message):
    __slots__ = ("campaign", "after")
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    after: int
    def __init__(self, campaign: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class WatchJudgementsResponse(_message.Message):
    __slots__ = ("judgement",)
    JUDGEMENT_FIELD_NUMBER: _ClassVar[int]
    judgement: Judgement
    def __init__(self, judgement: _Optional[_Union[Judgement, _Mapping]] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("campaign",)
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    def __init__(self, campaign: _Optional[str] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("row",)
    ROW_FIELD_NUMBER: _ClassVar[int]
    row: str
    def __init__(self, row: _Optional[str] = ...) -> None: ...

class GetProgressRequest(_message.Message):
    __slots__ = ("campaign",)
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    def __init__(self, campaign: _Optional[str] = ...) -> None: ...

class FeedbackProgress(_message.Message):
    __slots__ = ("campaign", "link", "wanted", "done", "open", "people", "set_aside", "alpha", "alpha_low", "alpha_high", "closed", "position")
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    PEOPLE_FIELD_NUMBER: _ClassVar[int]
    SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    ALPHA_LOW_FIELD_NUMBER: _ClassVar[int]
    ALPHA_HIGH_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    link: str
    wanted: int
    done: int
    open: int
    people: int
    set_aside: int
    alpha: float
    alpha_low: float
    alpha_high: float
    closed: bool
    position: int
    def __init__(self, campaign: _Optional[str] = ..., link: _Optional[str] = ..., wanted: _Optional[int] = ..., done: _Optional[int] = ..., open: _Optional[int] = ..., people: _Optional[int] = ..., set_aside: _Optional[int] = ..., alpha: _Optional[float] = ..., alpha_low: _Optional[float] = ..., alpha_high: _Optional[float] = ..., closed: bool = ..., position: _Optional[int] = ...) -> None: ...

class GetProgressResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: FeedbackProgress
    def __init__(self, progress: _Optional[_Union[FeedbackProgress, _Mapping]] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("name", "lead")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    lead: bool
    def __init__(self, name: _Optional[str] = ..., lead: bool = ...) -> None: ...

class InviteResponse(_message.Message):
    __slots__ = ("link",)
    LINK_FIELD_NUMBER: _ClassVar[int]
    link: str
    def __init__(self, link: _Optional[str] = ...) -> None: ...

class CloseCampaignRequest(_message.Message):
    __slots__ = ("campaign",)
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    def __init__(self, campaign: _Optional[str] = ...) -> None: ...

class CloseCampaignResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: FeedbackProgress
    def __init__(self, progress: _Optional[_Union[FeedbackProgress, _Mapping]] = ...) -> None: ...
